"""A GraphCLIP-style victim: a graph transformer whose vectors live in the space of a frozen text encoder."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from aisec_common.files import write_atomic
from aisec_common.seeding import derived_seed
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch_geometric.data import Batch

from gfmextract.cost import Cost
from gfmextract.hf_text_tower import TextTower, load_text_tower
from gfmextract.pyg_backbones import POSITION_WIDTH, make_backbone
from gfmextract.victim import evaluating

TEMPERATURE = 0.07
"""What the learnable temperature starts from."""


@dataclass(frozen=True, kw_only=True)
class GraphClipConfig:
    """Size of the graph encoder; GraphCLIP itself has 12 layers of width 1024 with 8 heads and 32 positions.

    Args:
        layers: GPS layers, each a SAGE convolution beside attention over the ego graph.
        width: of their nodes; a multiple of `heads`.
        heads: of attention.
        positions: length of the random-walk positions of the ego graphs.

    Raises:
        ValueError: for no layer, or a width that does not fit.

    Source: GraphCLIP (arXiv 2410.10329), authors' code; the small sizes are ours.
    """

    layers: int = 3
    width: int = 64
    heads: int = 4
    positions: int = 8

    def __post_init__(self) -> None:
        if min(self.layers, self.heads, self.positions) < 1:
            given = (self.layers, self.heads, self.positions)
            raise ValueError(f"layers, heads and positions must be at least 1, got {given}")
        if self.width <= POSITION_WIDTH or self.width % self.heads:
            raise ValueError(
                f"width must be above {POSITION_WIDTH} and a multiple of {self.heads} heads, got {self.width}"
            )


class GraphClip(nn.Module):
    """A victim: a graph encoder pretrained towards a frozen text encoder.

    G(g) = W [mean_v h_v ; h_root] + b, h = GPS^layers([Linear(x) ; Linear(BatchNorm(pe))])

    Fresh weights are drawn from `seed`; `gfmextract.pretraining.pretrain` trains them.

    Args:
        config: sizes.
        features: F, width of node features.
        tower: the text encoder; its width is that of the vectors.
        seed: of the first weights.

    Source: GraphCLIP (arXiv 2410.10329), authors' code.
    """

    spent: Tensor
    """[2] seconds and floating-point operations of pretraining, kept with the weights."""

    def __init__(self, config: GraphClipConfig, *, features: int, tower: TextTower, seed: int = 0) -> None:
        super().__init__()
        self.config, self.features, self.tower = config, features, tower
        with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global generator
            torch.manual_seed(derived_seed(seed, "graph encoder"))
            self.graph = make_backbone(
                "gps",
                features,
                tower.width,
                layers=config.layers,
                hidden=config.width,
                heads=config.heads,
                positions=config.positions,
            )
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE)))
        self.register_buffer("spent", torch.zeros(2, dtype=torch.float64))

    @property
    def cost(self) -> Cost:
        """What its pretraining took, 0 for fresh weights."""
        return Cost(seconds=float(self.spent[0]), flops=float(self.spent[1]))

    def forward(self, batch: Batch) -> Tensor:
        """[G, d] vectors in the mode the module is in, with gradients: what pretraining works on.

        Raises:
            ValueError: for features or positions of another width.
        """
        got, wanted = (batch.x.shape[1], batch.pe.shape[1]), (self.features, self.config.positions)
        if got != wanted:
            raise ValueError(f"batch has x and pe of width {got}, this encoder reads {wanted}: encode the texts again")
        return self.graph.encode_graph(batch.to(self.log_scale.device))

    def encode_graph(self, batch: Batch) -> Tensor:
        """[G, d] vectors as a service gives them: always in eval mode and without gradients."""
        with evaluating(self), torch.no_grad():
            vectors: Tensor = self(batch)
        return vectors

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """[n, d] vectors of texts."""
        return self.tower.encode(texts)

    def save(self, path: Path) -> None:
        """Writes weights and sizes to one safetensors file, and which text tower they belong to."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        told = {"config": asdict(self.config), "features": self.features}
        made = told | {"tower": {"source": self.tower.source, "hash": self.tower.hash}}
        write_atomic(path, save(state, {"graph_clip": json.dumps(made)}))

    @classmethod
    def load(cls, path: Path, tower: TextTower | str | None = None) -> GraphClip:
        """Reads what `save` wrote.

        Args:
            path: the file.
            tower: the text tower it was pretrained with, or what `load_text_tower` knows it by; by default the name
                that the file has of it.

        Raises:
            ValueError: when the file is not there or not one of these, the tower is another or has no name.
            FileNotFoundError: for a tower that has not been fetched.
        """
        try:
            with safe_open(path, "pt") as file:
                made = json.loads((file.metadata() or {})["graph_clip"])
        except (OSError, SafetensorError, KeyError):
            raise ValueError(f"path {path} is not a file that GraphClip.save wrote: save the victim again") from None
        source = made["tower"]["source"]
        if tower is None and source is None:
            raise ValueError(f"tower of {path.name} has no name to load it by: give the tower (--text-model FOLDER)")
        if not isinstance(tower, TextTower):
            tower = load_text_tower(tower or source)
        if made["tower"]["hash"] != tower.hash:
            known = source or "a tiny tower of another seed"
            raise ValueError(f"tower is not the one {path.name} was pretrained with, which is {known}")
        victim = cls(GraphClipConfig(**made["config"]), features=made["features"], tower=tower)
        victim.load_state_dict(load_file(path))
        return victim.eval()

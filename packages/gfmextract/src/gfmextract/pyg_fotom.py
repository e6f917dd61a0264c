"""FoToM, a published graph foundation model of topology, as a victim that nobody here trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from aisec_common.data import checkpoint_path
from aisec_common.torch.device import resolve_device
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.nn import GINEConv, global_add_pool

from gfmextract.victim import evaluating

WIDTH, LAYERS = 300, 6
ATOMS = (119, 5, 12, 12, 10, 6, 6, 2, 2)
BONDS = (5, 6, 2)
"""Rows of the tables of node and of edge features."""
PLAIN = 1
"""Row of the first table that every node and edge without features has."""


class FotomVictim(nn.Module):
    """A stack of GINE convolutions that reads topology alone: `x` and `pe` of the ego graphs are not looked at.

    z_g = sum_(v in g) h_v^6, h^l = BatchNorm(MLP((1 + eps) h_v^(l-1) + sum_(u ~ v) ReLU(h_u^(l-1) + e))), ReLU between

    It has no text side. Fresh weights come from torch's global generator; `load_fotom` puts the published ones in.

    Source: FoToM (package `fotom` 1.1.0), topology-only contrastive pretraining; the layers are written anew from the
    names and shapes of its weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.atoms = nn.ModuleList(nn.Embedding(rows, WIDTH) for rows in ATOMS)
        self.bonds = nn.ModuleList(nn.Embedding(rows, WIDTH) for rows in BONDS)
        self.convs = nn.ModuleList(GINEConv(_perceptron(), train_eps=True) for _ in range(LAYERS))
        self.bns = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in range(LAYERS))

    def forward(self, batch: Batch) -> Tensor:
        """[G, 300] vectors of the graphs of a batch, in the mode the module is in."""
        batch = batch.to(self.bns[0].weight.device)
        plain = torch.full((1,), PLAIN, device=batch.batch.device)
        h = self.atoms[0](plain).expand(len(batch.batch), WIDTH)
        edge = self.bonds[0](plain).expand(batch.edge_index.shape[1], WIDTH)
        for layer, (conv, norm) in enumerate(zip(self.convs, self.bns, strict=True), 1):
            h = norm(conv(h, batch.edge_index, edge))
            if layer < LAYERS:
                h = h.relu()
        vectors: Tensor = global_add_pool(h, batch.batch, batch.num_graphs)
        return vectors

    def encode_graph(self, batch: Batch) -> Tensor:
        """[G, 300] vectors as a service gives them: always in eval mode and without gradients."""
        with evaluating(self), torch.no_grad():
            vectors: Tensor = self(batch)
        return vectors

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """There is no text side.

        Raises:
            TypeError: always.
        """
        raise TypeError("FoToM has no text encoder: compare embeddings, or train a probe on them, without zero-shot")


def load_fotom(path: Path | None = None, *, device: str | torch.device = "cpu") -> FotomVictim:
    """The published weights in eval mode.

    Args:
        path: of `fotom.pt`; by default the fetched checkpoint (`aisec data fetch fotom`).
        device: where the model goes.

    Raises:
        FileNotFoundError: when the checkpoint has not been fetched.
        ValueError: for a file that holds other weights.

    Source: FoToM (package `fotom` 1.1.0).
    """
    file = path or checkpoint_path("fotom") / "fotom.pt"
    saved = torch.load(file, map_location="cpu", weights_only=True)
    victim = FotomVictim()
    names = {"atom_encoder.atom_embedding_list": "atoms", "bond_encoder.bond_embedding_list": "bonds"}
    state = {}
    for name, tensor in saved.get("encoder_state_dict", {}).items():
        if name.startswith("encoder."):  # beside it lies the head of its own contrastive training
            name = name.removeprefix("encoder.")
            for theirs, ours in names.items():
                name = name.replace(theirs, ours)
            state[name] = tensor
    try:
        victim.load_state_dict(state)
    except RuntimeError:
        raise ValueError(f"path {file} does not hold the weights of FoToM: fetch the checkpoint again") from None
    return victim.to(resolve_device(device)).eval()


def _perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.BatchNorm1d(2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))

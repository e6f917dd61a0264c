"""The attacker's encoder, and the loop that trains it on ego graphs under any loss."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import torch
from aisec_common.files import write_atomic
from aisec_common.seeding import derived_seed, torch_rng
from aisec_common.torch.device import resolve_device
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gfmextract.config import ExtractionConfig
from gfmextract.cost import Cost, flops_of
from gfmextract.pyg_backbones import make_backbone
from gfmextract.pyg_ego import EgoBatch, EgoGraphs

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of vectors [B, d] and the rows [B] of the training set that they belong to."""
Show = Callable[[str, int, int], None]
HELD_OUT = 0.1


class Surrogate(nn.Module):
    """An encoder of ego graphs, A(g) = scale * backbone(g), that always answers in evaluation mode.

    Args:
        config: its backbone, layers, width, seed and device.
        features: width F of node features.
        positions: width P of random-walk positions.
        dimension: d of its vectors.

    >>> Surrogate(ExtractionConfig(backbone="mlp"), features=4, positions=8, dimension=3).dimension
    3
    """

    scale: Tensor
    """Length of its vectors' entries, so that training does not depend on the unit of the answers."""

    def __init__(self, config: ExtractionConfig, *, features: int, positions: int, dimension: int) -> None:
        super().__init__()
        self.config, self.features, self.positions, self.dimension = config, features, positions, dimension
        self.cost = Cost(seconds=0.0, flops=0.0)
        with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global generator
            torch.manual_seed(derived_seed(config.seed, "surrogate"))
            self.backbone = make_backbone(
                config.backbone,
                features,
                dimension,
                layers=config.layers,
                hidden=config.hidden,
                positions=positions,
            )
        self.register_buffer("scale", torch.ones(()))
        self.to(resolve_device(config.device))

    def forward(self, batch: EgoBatch) -> Tensor:
        """[G, d] vectors, in whichever mode the encoder is; features and positions must have its width."""
        if batch.x.shape[1] != self.features or batch.pe.shape[1] != self.positions:
            got, wanted = (batch.x.shape[1], batch.pe.shape[1]), (self.features, self.positions)
            raise ValueError(f"batch has (features, positions) of width {got}, the encoder was trained on {wanted}")
        vectors: Tensor = self.backbone.encode_graph(batch.to(self.scale.device))
        return self.scale * vectors

    def encode_graph(self, batch: EgoBatch) -> Tensor:
        """[G, d] vectors of the ego graphs of a batch."""
        self.eval()
        vectors: Tensor = self(batch)
        return vectors

    def save(self, path: Path) -> None:
        """Writes weights and settings to one safetensors file."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        sizes = {"features": self.features, "positions": self.positions, "dimension": self.dimension}
        made = {"config": asdict(self.config), "sizes": sizes, "cost": asdict(self.cost)}
        write_atomic(path, save(state, {"surrogate": json.dumps(made)}))

    @classmethod
    def load(cls, path: Path, *, device: str = "cpu") -> Surrogate:
        """Reads what `save` wrote.

        Raises:
            ValueError: when the file is not there or not one of these.
        """
        try:
            with safe_open(path, "pt") as file:
                made = json.loads((file.metadata() or {})["surrogate"])
        except (OSError, SafetensorError, KeyError):
            raise ValueError(f"path {path} is not a file that Surrogate.save wrote: save the encoder again") from None
        surrogate = cls(ExtractionConfig(**made["config"] | {"device": device}), **made["sizes"])
        surrogate.load_state_dict(load_file(path))
        surrogate.cost = Cost(**made["cost"])
        return surrogate.eval()


def fresh_surrogate(config: ExtractionConfig, egos: EgoGraphs, dimension: int) -> Surrogate:
    """An untrained encoder of such ego graphs."""
    return Surrogate(config, features=egos.x.shape[1], positions=egos.pe.shape[1], dimension=dimension)


def fit_surrogate(surrogate: Surrogate, egos: EgoGraphs, loss: Loss, *, show: Show | None = None) -> Surrogate:
    """Minimises the mean of `loss` over the ego graphs with AdamW, in place; see `ExtractionConfig` for the schedule.

    Args:
        surrogate: to train further.
        egos: Q >= 2 ego graphs, made once.
        loss: of vectors [B, d] and their rows [B] among the Q, a mean over them.
        show: progress, as `aisec_common.progress.counting` gives it.

    Returns:
        The surrogate, its cost increased.

    Raises:
        ValueError: for fewer than two ego graphs, or a loss that is no longer finite.
    """
    config = surrogate.config
    if len(egos) < 2:
        raise ValueError(f"egos must be at least 2 for batch normalisation, got {len(egos)}: ask for more")
    order = torch_rng(config.seed, "order")
    rows = torch.randperm(len(egos), generator=order)
    held = max(1, round(HELD_OUT * len(egos))) if config.patience and len(egos) > 2 else 0
    held_out, rows = rows[:held], rows[held:]
    optimizer = torch.optim.AdamW(surrogate.parameters(), lr=config.learning_rate, fused=True)  # many small weights
    best, best_state, waited = float("inf"), surrogate.state_dict(), 0
    steps, rounds, begin = 0, config.rounds(len(rows)), time.perf_counter()
    for epoch in range(rounds):
        surrogate.train()
        mixed = rows[torch.randperm(len(rows), generator=order)]
        for part in mixed.tensor_split(config.batches(len(rows))):  # equal parts: none of a single query
            value = loss(surrogate(egos[part].batch()), part)
            if not torch.isfinite(value):
                raise ValueError(f"learning_rate {config.learning_rate:g} made the loss {value.item()}: lower it")
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps += 1
        if show:
            show(f"training {config.backbone}", epoch + 1, rounds)
        if held:
            with torch.no_grad():
                reached = loss(surrogate.encode_graph(egos[held_out].batch()), held_out).item()
            waited += 1
            if reached < best:
                best, best_state, waited = reached, deepcopy(surrogate.state_dict()), 0
            if waited >= config.patience:
                break
    if held:
        surrogate.load_state_dict(best_state)
    seconds = time.perf_counter() - begin
    some = rows[: -(-len(rows) // config.batches(len(rows)))]
    surrogate.eval()
    counted = flops_of(lambda: loss(surrogate(egos[some].batch()), some).backward())  # type: ignore[no-untyped-call]
    surrogate.zero_grad()
    surrogate.cost = Cost(seconds=surrogate.cost.seconds + seconds, flops=surrogate.cost.flops + counted * float(steps))
    return surrogate

"""Settings of an extraction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

BackboneName = Literal["gps", "sage", "gcn", "gat", "gin", "mlp"]
LossName = Literal["mse", "cosine", "huber"]
BACKBONES: tuple[BackboneName, ...] = get_args(BackboneName)
LOSSES: tuple[LossName, ...] = get_args(LossName)


@dataclass(frozen=True, kw_only=True)
class ExtractionConfig:
    """How an attacker's encoder is built and trained on the answers of a service.

    Raises:
        ValueError: for a value outside its range; the message names it.

    >>> ExtractionConfig(backbone="sage", layers=2).steps(queries=240)
    240
    >>> ExtractionConfig().steps(queries=12)  # one batch an epoch, so more epochs
    200

    Source: arXiv 2511.11912, supervised embedding regression; all values are ours.
    """

    backbone: BackboneName = "gps"
    """Of the attacker's encoder."""
    layers: int = 3
    """Message-passing layers."""
    hidden: int = 64
    """Width, a multiple of 8."""
    loss: LossName = "mse"
    """Between the encoder's output and the answer."""
    normalize_targets: bool = False
    """Regress on answers of length one."""
    learning_rate: float = 4e-3
    """Of AdamW."""
    epochs: int = 30
    """Passes over the queries."""
    min_steps: int = 200
    """Gradient steps taken at least: with few queries, 30 epochs are few steps."""
    batch_size: int = 32
    """Queries a step."""
    patience: int = 0
    """Epochs without a better loss on a tenth of the queries held out, after which training stops and the best weights
    come back; 0 trains on all queries to the end."""
    seed: int = 0
    """Of initial weights and of the order of the queries."""
    device: str = "cpu"
    """Where it trains, such as cpu or cuda; auto takes what is there."""

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, got {self.backbone!r}")
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        for name in ("layers", "epochs", "min_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden < 16 or self.hidden % 8:
            raise ValueError(f"hidden must be a multiple of 8 and at least 16, got {self.hidden}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2 for batch normalisation, got {self.batch_size}")
        if self.patience < 0:
            raise ValueError(f"patience must be 0 (none) or a number of epochs, got {self.patience}")
        if not 0.0 < self.learning_rate < 1.0:
            raise ValueError(f"learning_rate must lie between 0 and 1, got {self.learning_rate}")

    def steps(self, queries: int) -> int:
        """Gradient steps for so many queries, whole epochs."""
        return self.batches(queries) * self.rounds(queries)

    def rounds(self, queries: int) -> int:
        """Epochs for so many queries: `epochs`, or as many as `min_steps` takes."""
        return max(self.epochs, -(-self.min_steps // self.batches(queries)))

    def batches(self, queries: int) -> int:
        """Steps an epoch."""
        return -(-queries // self.batch_size)

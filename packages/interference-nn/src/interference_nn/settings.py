"""How an interference network combines, draws and decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Interference = Literal["superpose", "mosaic", "channel"]
Mode = Literal["random", "fixed", "keyed"]
Head = Literal["two", "joint", "extra_class"]

ALPHA_RANGE = (0.3, 0.6)
"""Of alpha="random": drawn from here for each training sample; .5 at inference."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of an interference network, all of them our design: the paper's text is not public beyond its abstract.

    Args:
        interference: how image and background become one input; see `interference_nn.interference`.
        alpha: a of `superpose`, or "random": a fresh U(.3, .6) for each training sample and .5 at inference.
        draws: M, backgrounds averaged over in one prediction.
        mode: "random": fresh draws at each call; "fixed": the first M of the bank; "keyed": by a key and the image.
        head: "two": a target head and a background head; "joint": one softmax over K + L classes; "extra_class":
            reading B, backgrounds are training samples of L further classes and nothing is blended.
        weight: lam, of the background task in the loss; 0 switches it off.
        replacement: whether the M backgrounds of an image may repeat.

    Raises:
        ValueError: if a value is out of its range.

    >>> Settings(alpha=1.5)
    Traceback (most recent call last):
    ValueError: alpha must lie in [0, 1] or be 'random', not 1.5
    """

    interference: Interference = "superpose"
    alpha: float | Literal["random"] = 0.5
    draws: int = 8
    mode: Mode = "random"
    head: Head = "two"
    weight: float = 0.5
    replacement: bool = True

    def __post_init__(self) -> None:
        for name, known in (
            ("interference", ("superpose", "mosaic", "channel")),
            ("mode", ("random", "fixed", "keyed")),
            ("head", ("two", "joint", "extra_class")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        alpha: object = self.alpha  # callers without a type checker give anything
        if alpha != "random" and not (isinstance(alpha, (int, float)) and 0 <= alpha <= 1):
            raise ValueError(f"alpha must lie in [0, 1] or be 'random', not {self.alpha!r}")
        if self.draws < 1:
            raise ValueError(f"draws must be at least 1, not {self.draws}")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be finite and not negative, not {self.weight}")

    @property
    def blend(self) -> float:
        """a at inference."""
        return 0.5 if isinstance(self.alpha, str) else self.alpha

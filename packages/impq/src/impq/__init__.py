"""IMPQ: interaction-aware mixed-precision bit plans for language models, from measured Shapley games."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from impq.budget import Budget
from impq.game import Game
from impq.plan import BitPlan, solve

if TYPE_CHECKING:
    from impq.apply import apply_plan
    from impq.estimate import estimate_game

__all__ = ["BitPlan", "Budget", "Game", "__version__", "apply_plan", "estimate_game", "solve"]
__version__ = version("aisec-impq")

_LAZY = {"apply_plan": "impq.apply", "estimate_game": "impq.estimate"}  # torch and transformers load with them


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'impq' has no attribute {name!r}")

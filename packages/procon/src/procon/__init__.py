"""ProCon: fine-tuning that holds projections onto the refusal direction of an aligned model in place."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from procon.config import ProConConfig
    from procon.direction import RefusalDirections
    from procon.hf_directions import refusal_directions
    from procon.hf_drift import drift_report
    from procon.projection import projection_term
    from procon.trl_trainer import ProConTrainer

__all__ = [
    "ProConConfig",
    "ProConTrainer",
    "RefusalDirections",
    "__version__",
    "drift_report",
    "projection_term",
    "refusal_directions",
]
__version__ = version("aisec-procon")

_LAZY = {  # torch, transformers and trl load with them
    "ProConConfig": "procon.config",
    "ProConTrainer": "procon.trl_trainer",
    "RefusalDirections": "procon.direction",
    "drift_report": "procon.hf_drift",
    "projection_term": "procon.projection",
    "refusal_directions": "procon.hf_directions",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'procon' has no attribute {name!r}")

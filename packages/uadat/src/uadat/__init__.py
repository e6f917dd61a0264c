"""uadat: adversarial training against a distribution of uncertain adversaries, and a reliable robustness report."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uadat.baselines import ATLoss, MARTLoss, StandardLoss, TRADESLoss
    from uadat.hf_trainer import RobustTrainer
    from uadat.loss import UADLoss
    from uadat.report import robust_report

__all__ = [
    "ATLoss",
    "MARTLoss",
    "RobustTrainer",
    "StandardLoss",
    "TRADESLoss",
    "UADLoss",
    "__version__",
    "robust_report",
]
__version__ = version("aisec-uadat")

_LAZY = {  # torch and accelerate load with them
    "ATLoss": "uadat.baselines",
    "MARTLoss": "uadat.baselines",
    "RobustTrainer": "uadat.hf_trainer",
    "StandardLoss": "uadat.baselines",
    "TRADESLoss": "uadat.baselines",
    "UADLoss": "uadat.loss",
    "robust_report": "uadat.report",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'uadat' has no attribute {name!r}")

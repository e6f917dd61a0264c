"""ICFNet: survival prediction from tissue patches, gene groups and clinical text, with an honest report."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from icfnet.cohort import Cohort
from icfnet.config import ICFNetConfig
from icfnet.likelihood import balanced_nll
from icfnet.transport import transport_plan

if TYPE_CHECKING:
    from icfnet.mcat import load_mcat_cohort
    from icfnet.sksurv_estimator import ICFNetSurvival
    from icfnet.sksurv_report import evaluate
    from icfnet.synthetic import synthetic_cohort

__all__ = [
    "Cohort",
    "ICFNetConfig",
    "ICFNetSurvival",
    "__version__",
    "balanced_nll",
    "evaluate",
    "load_mcat_cohort",
    "synthetic_cohort",
    "transport_plan",
]
__version__ = version("aisec-icfnet")

_LAZY = {  # scikit-survival loads with them
    "ICFNetSurvival": "icfnet.sksurv_estimator",
    "evaluate": "icfnet.sksurv_report",
    "load_mcat_cohort": "icfnet.mcat",
    "synthetic_cohort": "icfnet.synthetic",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'icfnet' has no attribute {name!r}")

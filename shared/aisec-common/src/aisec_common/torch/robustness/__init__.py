"""How robust a classifier is to l_inf attacks, from naive to adaptive, and whether the answer can be believed.

    report = robustness_report(model, images, labels, eps=8 / 255, rungs=standard_rungs("standard"))
    print(report.to_markdown())
    report.raise_if_masked()

Attacks from torchattacks (`apgd`, `fab`, `square`, `autoattack`, `callable_attack`) are imported when first asked for.
"""

from __future__ import annotations

from typing import Any

from aisec_common.torch.robustness.flags import Flag, beats
from aisec_common.torch.robustness.report import robustness_report
from aisec_common.torch.robustness.result import Comparison, RobustnessReport
from aisec_common.torch.robustness.rungs import Rung, noise, one_draw, pgd, standard_rungs, transfer

_TORCHATTACKS = ("apgd", "autoattack", "callable_attack", "fab", "square")

__all__ = [
    "Comparison",
    "Flag",
    "RobustnessReport",
    "Rung",
    "apgd",
    "autoattack",
    "beats",
    "callable_attack",
    "fab",
    "noise",
    "one_draw",
    "pgd",
    "robustness_report",
    "square",
    "standard_rungs",
    "transfer",
]


def __getattr__(name: str) -> Any:
    if name not in _TORCHATTACKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from aisec_common.torch.robustness import torchattacks_attacks

    return getattr(torchattacks_attacks, name)

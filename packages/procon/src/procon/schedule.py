"""The course of α over a training."""

from __future__ import annotations

import math
from collections.abc import Callable

from procon.config import ProConConfig

Schedule = Callable[[float], float]
"""From progress, in epochs done before the step, to α."""

_ROUNDING = 1e-9  # epochs; the trainer counts progress in fractions of an epoch


def constant(alpha: float) -> Schedule:
    """α throughout (ProCon_s).

    >>> constant(0.1)(7.5)
    0.1
    """
    return lambda progress: alpha


def warmup(alpha: float, epochs: float) -> Schedule:
    """α(p) = α for p < `epochs`, then 0 (ProCon_wu): the step that begins epoch number `epochs` is the first free one.

    >>> course = warmup(1.0, 4)
    >>> course(3.99), course(4.0)
    (1.0, 0.0)

    Source: arXiv 2509.06795, section 4 (warm-up strategy).
    """
    return lambda progress: alpha if progress < epochs - _ROUNDING else 0.0


def schedule_of(config: ProConConfig, alpha_schedule: Schedule | None = None) -> Schedule:
    """The course that `config` names, or the given one.

    Raises:
        ValueError: if `alpha_schedule` is given beside schedule='warmup'; later, if it returns no possible α.
        TypeError: if it is no callable.
    """
    if alpha_schedule is None:
        if config.schedule == "warmup":
            return warmup(config.alpha, config.warmup_epochs)
        return constant(config.alpha)
    if not callable(alpha_schedule):
        raise TypeError(f"alpha_schedule must be a callable progress -> alpha, got {type(alpha_schedule).__name__}")
    if config.schedule != "constant":
        raise ValueError("alpha_schedule stands beside schedule='warmup': give one of the two")

    def checked(progress: float) -> float:
        alpha = float(alpha_schedule(progress))
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"alpha_schedule must return finite values of at least 0, got {alpha} at {progress}")
        return alpha

    return checked

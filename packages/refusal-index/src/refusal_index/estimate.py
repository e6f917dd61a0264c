"""The Refusal Index of one two-pass evaluation, with its interval and everything that limits it."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike
from scipy.special import ndtri

from refusal_index.intervals import bootstrap_ri, check_level, percentile_interval, rho_standard_error
from refusal_index.table import Floats, as_counts, cell_counts
from refusal_index.tetrachoric import ri_from_rho, ri_slope, tetrachoric

Interval = tuple[float, float]
IntervalKind = Literal["bootstrap", "analytic"]
NO_INTERVAL = (math.nan, math.nan)
SMALL_CELL = 5
RATE_ROUNDING = 1e-9  # rates computed elsewhere add up to 1 only to rounding


class UndefinedRefusalIndexWarning(UserWarning):
    """The table has an empty margin (nothing or everything refused or wrong): no correlation is defined."""


class SmallCellWarning(UserWarning):
    """An observed or expected cell is below 5: the bootstrap interval is unreliable."""


class EstimateOptions(TypedDict, total=False):
    """Keyword options of `refusal_index` that `from_rates` passes on."""

    ci: IntervalKind
    level: float
    resamples: int
    correction: float | Literal["none"]
    on_undefined: Literal["nan", "zero"]
    rng: int | Generator


@dataclass(frozen=True, kw_only=True)
class RefusalIndex:
    """A Refusal Index with its uncertainty.

    Attributes:
        ri: Refusal Index in [-1, 1]; high when refusals fall on questions the model would get wrong.
        rho: tetrachoric correlation behind it.
        ci: the interval to quote, of the kind `ci_kind`; (NaN, NaN) when none is honest.
        ci_kind: the kind asked for, or "analytic" in place of the bootstrap when a cell is below 5.
        bootstrap_ci: percentile interval over resampled questions; None when not asked for.
        analytic_ci: ri +- z SE(RI), cut to [-1, 1]; NaN when a cell is empty.
        se: delta-method standard error of `ri`.
        rho_se: delta-method standard error of `rho`.
        level: confidence level of the intervals.
        counts: n11, n10, n01, n00 before any correction.
        n: number of questions.
        correction: what was added to every cell.
        boundary: whether an empty cell put the estimate on -1 or +1.
        small_cells: whether an observed or expected cell is below 5.
        dropped: share of bootstrap replicates without an estimate (an empty margin).
        undefined: why no index exists, "" when it does.

    >>> index = refusal_index(counts=(40, 10, 30, 120))
    >>> round(index.ri, 2), index.refusal_rate, index.boundary
    (0.77, 0.25, False)
    """

    ri: float
    rho: float
    ci: Interval
    ci_kind: IntervalKind
    bootstrap_ci: Interval | None
    analytic_ci: Interval
    se: float
    rho_se: float
    level: float
    counts: tuple[float, float, float, float]
    n: float
    correction: float
    boundary: bool
    small_cells: bool
    dropped: float
    undefined: str

    @property
    def table(self) -> Floats:
        """Counts as a matrix: rows refused, answered; columns wrong, right."""
        return np.array(self.counts, dtype=float).reshape(2, 2)

    @property
    def refusal_rate(self) -> float:
        """Share r of the questions refused in the first pass."""
        return (self.counts[0] + self.counts[1]) / self.n

    @property
    def error_rate(self) -> float:
        """Share mu of the questions answered wrong once refusals are replaced by forced answers."""
        return (self.counts[0] + self.counts[2]) / self.n

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for `json.dumps`: NaN becomes None, tuples become lists."""
        return {name: _json_ready(value) for name, value in asdict(self).items()}


def refusal_index(
    refused: Any = None,
    wrong: Any = None,
    *,
    counts: ArrayLike | None = None,
    ci: IntervalKind = "bootstrap",
    level: float = 0.95,
    resamples: int = 1000,
    correction: float | Literal["none"] = "none",
    on_undefined: Literal["nan", "zero"] = "nan",
    rng: int | Generator = 0,
) -> RefusalIndex:
    """How well refusals track errors: RI = (6/pi) arcsin(rho/2), rho the tetrachoric correlation of refused and wrong.

    Refused questions count as wrong when the *forced* second-pass answer is wrong, not because they were refused.

    Args:
        refused: flags (N,), whether the model refused question i when it was allowed to.
        wrong: flags (N,), whether its answer (the forced one where it refused) is wrong.
        counts: n11, n10, n01, n00 = refused and wrong, refused and right, answered and wrong, answered and right;
            instead of the flags.
        ci: interval to quote; the analytic one is always computed, the bootstrap only when asked for.
        level: confidence level.
        resamples: bootstrap replicates over questions.
        correction: added to every cell, 0.5 by custom, to keep the estimate off its bounds; "none" or 0 for none.
        on_undefined: value of the index when nothing or everything is refused or wrong: NaN with a warning, or 0.0 as
            the paper has it.
        rng: seed or generator of the bootstrap.

    Returns:
        The index with its intervals. Below 5 in an observed or expected cell `ci` is the analytic interval; with an
        empty cell, or when more than 5 % of the replicates have an empty margin, it is (NaN, NaN).

    Raises:
        TypeError: if neither or both of flags and counts are given.
        ValueError: if an argument is out of range, missing values included.

    Warns:
        UndefinedRefusalIndexWarning: if the index is undefined and `on_undefined="nan"`.
        SmallCellWarning: if an observed or expected cell is below 5.

    Source: arXiv 2510.01782, section 3.

    >>> res = refusal_index(counts=(1500, 360, 1658, 808))
    >>> round(res.ri, 3), [round(end, 2) for end in res.ci]
    (0.244, [0.2, 0.29])
    """
    flags = (refused is not None) + (wrong is not None)
    if flags != (2 if counts is None else 0):
        raise TypeError("give either refused and wrong, or counts=(n11, n10, n01, n00)")
    table = as_counts(counts) if counts is not None else cell_counts(refused, wrong)
    if table.shape != (4,):
        raise ValueError("refused, wrong and counts must describe one setting: call once per prompt or model")
    if table.sum() == 0:
        raise ValueError("counts holds no questions: n11, n10, n01, n00 are all 0")
    if ci not in ("bootstrap", "analytic"):
        raise ValueError(f'ci must be "bootstrap" or "analytic", not {ci!r}')
    if on_undefined not in ("nan", "zero"):
        raise ValueError(f'on_undefined must be "nan" or "zero", not {on_undefined!r}')
    added = 0.0 if correction == "none" else float(correction)
    if not 0 <= added < math.inf:
        raise ValueError(f'correction must be "none" or a number of at least 0 such as 0.5, not {correction!r}')
    check_level(level)
    check_resamples(resamples)

    cause = _undefined_cause(table)
    small = _has_small_cell(table)
    if cause and on_undefined == "nan":
        message = f'the Refusal Index is undefined: {cause}; on_undefined="zero" gives the paper\'s 0.0'
        warnings.warn(message, UndefinedRefusalIndexWarning, stacklevel=2)
    elif small and not cause:
        message = "an observed or expected cell is below 5: ci is the analytic interval, NaN where a cell is empty"
        warnings.warn(f"{message} (correction=0.5 avoids that)", SmallCellWarning, stacklevel=2)

    corrected = table + added
    rho = math.nan if cause else float(tetrachoric(corrected))
    ri = float(ri_from_rho(rho)) if not cause else 0.0 if on_undefined == "zero" else math.nan
    rho_se = float(rho_standard_error(corrected, rho))
    se = rho_se * float(ri_slope(rho))
    half = float(ndtri((1 + level) / 2)) * se
    analytic = NO_INTERVAL if math.isnan(se) else (max(-1.0, ri - half), min(1.0, ri + half))
    bootstrap, dropped = None, 0.0
    if ci == "bootstrap":
        # On a bound every replicate repeats the bound: that is no interval.
        replicates = bootstrap_ri(table, resamples, rng, added) if abs(rho) < 1 else np.full(resamples, math.nan)
        bootstrap, dropped = percentile_interval(replicates, level), float(np.isnan(replicates).mean())
    kind: IntervalKind = "analytic" if small else ci
    refuse = bootstrap is not None and math.isnan(bootstrap[0])
    return RefusalIndex(
        ri=ri,
        rho=rho,
        ci=bootstrap if bootstrap and (refuse or kind == "bootstrap") else analytic,
        ci_kind=kind,
        bootstrap_ci=bootstrap,
        analytic_ci=analytic,
        se=se,
        rho_se=rho_se,
        level=level,
        counts=(_whole(table[0]), _whole(table[1]), _whole(table[2]), _whole(table[3])),
        n=_whole(table.sum()),
        correction=added,
        boundary=not cause and bool((corrected == 0).any()),
        small_cells=small,
        dropped=dropped,
        undefined=cause,
    )


def from_rates(
    correct_rate: float, refusal_rate: float, forced_accuracy: float, n: int, **options: Unpack[EstimateOptions]
) -> RefusalIndex:
    """The Refusal Index from published rates: n00 = c n, n10 = (a - c) n, n11 = (r - a + c) n, n01 = (1 - r - c) n.

    Cells are not rounded: rounding them to whole questions alone moves the index by up to 0.016 at n = 2000.

    Args:
        correct_rate: c, answered and right, as a share of *all* questions; not of the attempted ones (C/A). C/A given
            by mistake exceeds `forced_accuracy` whenever the index is positive and is then refused; where the index is
            zero or negative the mistake cannot be told from the numbers.
        refusal_rate: r, share refused in the first pass.
        forced_accuracy: a = 1 - mu, share of all questions right once refusals are replaced by forced answers.
        n: number of questions.
        **options: keyword options of `refusal_index`.

    Returns:
        The index as `refusal_index` gives it.

    Raises:
        ValueError: if a rate lies outside [0, 1], the rates contradict each other or n < 1.

    >>> round(from_rates(correct_rate=0.19, refusal_rate=0.43, forced_accuracy=0.27, n=4326).ri, 3)
    0.268
    """
    c, r, a = correct_rate, refusal_rate, forced_accuracy
    for name, rate in (("correct_rate", c), ("refusal_rate", r), ("forced_accuracy", a)):
        if not 0 <= rate <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, not {rate}: give a share of all questions")
    if n < 1:
        raise ValueError(f"n must be the number of questions, at least 1, not {n}")
    if a < c - RATE_ROUNDING:
        raise ValueError(
            f"forced_accuracy {a} is below correct_rate {c}: correct_rate is the share of all questions, not C/A"
        )
    if c + r > 1 + RATE_ROUNDING:
        raise ValueError(
            f"correct_rate {c} and refusal_rate {r} add up to more than 1: both are shares of all questions"
        )
    if a - c > r + RATE_ROUNDING:
        raise ValueError(f"forced_accuracy {a} exceeds correct_rate + refusal_rate: forcing can only help on refusals")
    shares = np.array([r - a + c, a - c, 1 - r - c, c])
    shares[shares < RATE_ROUNDING] = 0.0
    return refusal_index(counts=n * shares, **options)


def check_resamples(resamples: int) -> None:
    """Raise ValueError unless `resamples` is a number of bootstrap replicates."""
    if not isinstance(resamples, int | np.integer) or isinstance(resamples, bool) or resamples < 1:
        raise ValueError(f"resamples must be a whole number of at least 1, not {resamples!r}")


def _undefined_cause(table: Floats) -> str:
    n11, n10, n01, n00 = table
    margins = {
        "no question was refused (r = 0)": n11 + n10,
        "every question was refused (r = 1)": n01 + n00,
        "no answer was wrong (mu = 0)": n11 + n01,
        "every answer was wrong (mu = 1)": n10 + n00,
    }
    return " and ".join(cause for cause, size in margins.items() if size == 0)


def _has_small_cell(table: Floats) -> bool:
    square = table.reshape(2, 2)
    expected = square.sum(1, keepdims=True) * square.sum(0) / table.sum()
    return bool(min(table.min(), expected.min()) < SMALL_CELL)


def _whole(value: float) -> float:
    """An int where nothing is lost: counts print as counts."""
    return int(value) if float(value).is_integer() else float(value)


def _json_ready(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json_ready(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value

"""The difference of two Refusal Indices measured on the same questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator

from refusal_index.estimate import NO_INTERVAL, check_resamples
from refusal_index.intervals import paired_bootstrap, percentile_interval
from refusal_index.table import cell_counts, paired_flags
from refusal_index.tetrachoric import ri_from_rho, tetrachoric


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """RI of setting a less RI of setting b on the same questions.

    Attributes:
        ri_a, ri_b: the two indices; NaN where undefined.
        difference: ri_a - ri_b.
        ci: percentile interval of the difference over jointly resampled questions; (NaN, NaN) when an empty
            cell puts an index on its bound -1 or 1, or more than 5 % of the resamples leave one undefined.
        level: confidence level of `ci`.
        dropped: share of resamples without a difference.
    """

    ri_a: float
    ri_b: float
    difference: float
    ci: tuple[float, float]
    level: float
    dropped: float


def paired_difference(
    refused_a: Any,
    wrong_a: Any,
    refused_b: Any,
    wrong_b: Any,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    rng: int | Generator = 0,
) -> PairedDifference:
    """Difference of two Refusal Indices with a bootstrap interval that keeps each question's two outcomes together.

    Args:
        refused_a, wrong_a: flags (N,) of the first model or prompt.
        refused_b, wrong_b: flags (N,) of the second, the same questions in the same order.
        level: confidence level.
        resamples: bootstrap replicates.
        rng: seed or generator.

    Returns:
        Both indices, their difference and its interval.

    Raises:
        ValueError: if the four do not describe the same questions, or `level` or `resamples` is out of range.

    >>> refused, wrong = np.arange(200) % 2 == 0, np.arange(200) % 5 < 3
    >>> paired_difference(refused, wrong, refused, wrong).ci
    (0.0, 0.0)
    """
    check_resamples(resamples)
    pairs = [paired_flags(refused_a, wrong_a), paired_flags(refused_b, wrong_b)]
    if pairs[0][0].shape != pairs[1][0].shape or pairs[0][0].ndim != 1:
        raise ValueError("refused_a and refused_b must be flags (N,) of the same questions in the same order")
    refused, wrong = (np.stack(flags) for flags in zip(*pairs, strict=True))
    ri_a, ri_b = (float(ri) for ri in ri_from_rho(tetrachoric(cell_counts(refused, wrong))))
    replicates = paired_bootstrap(refused, wrong, resamples, rng)
    difference = replicates[:, 0] - replicates[:, 1]
    # on a bound every replicate repeats the bound: that is no interval
    bound = max(abs(ri_a), abs(ri_b)) == 1
    return PairedDifference(
        ri_a=ri_a,
        ri_b=ri_b,
        difference=ri_a - ri_b,
        ci=NO_INTERVAL if bound else percentile_interval(difference, level),
        level=level,
        dropped=float(np.isnan(difference).mean()),
    )

"""How stable a ranking of models is over evaluation settings, with or without what c and r already explain."""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import ArrayLike

from refusal_index.table import Floats

MAX_SWEEPS = 1000
SWEEP_TOLERANCE = 1e-10


def kendall_w(scores: ArrayLike) -> float:
    """Kendall's coefficient of concordance: W = 12 sum_i (R_i - mean R)^2 / (m^2 (n^3 - n)).

    Args:
        scores: metric (m, n) of n models under m settings; ties share their mean rank.

    Returns:
        W in [0, 1]: 1 when every setting ranks the models alike, 1/m on average for random rankings.

    Raises:
        ValueError: if there are fewer than 2 settings or models, or a score is NaN.

    >>> kendall_w([[1, 2, 3], [10, 20, 30]])
    1.0
    """
    from scipy.stats import rankdata

    table = _settings_by_models(scores)
    m, n = table.shape
    rank_sums = rankdata(table, axis=1).sum(axis=0)
    return float(12 * ((rank_sums - rank_sums.mean()) ** 2).sum() / (m**2 * (n**3 - n)))


def winner_entropy(scores: ArrayLike) -> float:
    """Entropy of who comes first: -sum_i p_i log_n p_i, p_i the share of settings that model i wins.

    Args:
        scores: metric (m, n), higher is better; tied winners share their setting.

    Returns:
        Entropy in [0, 1], in units of log n: 0 when one model always wins.

    Raises:
        ValueError: if there are fewer than 2 settings or models, or a score is NaN.

    >>> winner_entropy([[1, 2], [2, 1]])
    1.0
    """
    table = _settings_by_models(scores)
    wins = table == table.max(axis=1, keepdims=True)
    share = (wins / wins.sum(axis=1, keepdims=True)).mean(axis=0)
    share = share[share > 0]
    return float(-(share * np.log(share)).sum() / math.log(table.shape[1])) + 0.0


def isotonic_residuals(metric: ArrayLike, *explained_by: ArrayLike) -> Floats:
    """What is left of a metric after monotone regression on correct rate, refusal rate or the sum of both, per model.

    One covariate: metric - f(x). Two: metric - f(c) - g(r) by coordinate descent of isotonic fits until convergence.
    Each direction is taken from the sign of the Spearman correlation in the first sweep and kept: left free, the
    directions flip between sweeps in some data and the descent need not converge.

    Args:
        metric: values (m, n) of n models under m settings.
        *explained_by: one or two covariates (m, n): correct rates, refusal rates.

    Returns:
        Residuals (m, n), ready for `kendall_w` and `winner_entropy`.

    Raises:
        ValueError: if shapes differ, a value is NaN, or not one or two covariates are given.

    Source: arXiv 2510.01782, ranking stability.

    >>> isotonic_residuals([[1.0, 3.0], [2.0, 5.0]], [[0.1, 0.1], [0.2, 0.2]]).tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """
    table = _settings_by_models(metric)
    covariates = [_settings_by_models(x) for x in explained_by]
    if len(covariates) not in (1, 2) or any(x.shape != table.shape for x in covariates):
        raise ValueError(f"explained_by must be one or two arrays of the metric's shape {table.shape}")
    columns = [_residual(table[:, i], [x[:, i] for x in covariates]) for i in range(table.shape[1])]
    return np.stack(columns, axis=1)


def _residual(metric: Floats, covariates: list[Floats]) -> Floats:
    from sklearn.isotonic import IsotonicRegression

    parts = [np.zeros_like(metric) for _ in covariates]
    directions: list[bool] = []
    for _ in range(MAX_SWEEPS):
        before = sum(parts)
        for i, x in enumerate(covariates):
            target = metric - (sum(parts) - parts[i])
            if len(directions) <= i:
                directions.append(_increases(x, target))
            parts[i] = IsotonicRegression(increasing=directions[i]).fit_transform(x, target)
        if len(parts) == 1 or np.abs(sum(parts) - before).max() <= SWEEP_TOLERANCE * np.ptp(metric):
            break
    return np.asarray(metric - sum(parts))


def _increases(x: Floats, y: Floats) -> bool:
    from sklearn.isotonic import check_increasing

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return True  # flat: either direction fits the same constant
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns whenever few points leave the sign uncertain
        return bool(check_increasing(x, y))


def _settings_by_models(values: ArrayLike) -> Floats:
    table = np.asarray(values, dtype=float)
    if table.ndim != 2 or min(table.shape) < 2:
        raise ValueError(f"scores must be (settings, models) with at least 2 of each, not of shape {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError("scores must be finite: leave out the settings in which a model has no score")
    return table

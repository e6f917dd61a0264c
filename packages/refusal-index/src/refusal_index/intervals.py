"""How certain a Refusal Index is: its delta-method standard error and the bootstrap over questions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from refusal_index.table import Floats, as_counts, empty_margin, paired_flags
from refusal_index.tetrachoric import ri_from_rho, ri_slope, tetrachoric

BLOCK = 4_000_000  # numbers held at once while resampling: 32 MB
MOST_DROPPED = 0.05  # beyond this share of undefined replicates a percentile interval describes another population


def rho_standard_error(counts: ArrayLike, rho: ArrayLike | None = None) -> Floats:
    """Delta-method standard error of the tetrachoric correlation.

    Var(rho) = [sum p v^2 - (sum p v)^2] / (n phi2^2) with the cell scores v11 = 1 - A - B, v10 = -A, v01 = -B,
    v00 = 0, A = Phi((rho tau_R - tau_W) / s), B = Phi((rho tau_W - tau_R) / s), s = sqrt(1 - rho^2), and phi2 the
    bivariate normal density at the thresholds tau_R = Phi^-1(1 - r), tau_W = Phi^-1(1 - mu).

    Args:
        counts: tables (..., 4) ordered n11, n10, n01, n00.
        rho: their tetrachoric correlations (...), where already known.

    Returns:
        Standard errors (...); NaN where a cell is empty, because rho then sits on its bound.

    Source: arXiv 2510.01782 gives the bootstrap only; this is the classical delta method for the same estimator.

    >>> round(float(rho_standard_error([1500, 360, 1658, 808])), 4)
    0.0247
    """
    table = as_counts(counts)
    rho = np.where((table > 0).all(-1), tetrachoric(table) if rho is None else rho, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        n = table.sum(-1)
        p11, p10, p01, p00 = np.moveaxis(table / n[..., None], -1, 0)
        tau_r, tau_w = ndtri(p01 + p00), ndtri(p10 + p00)
        s2 = 1 - rho**2
        a = ndtr((rho * tau_r - tau_w) / np.sqrt(s2))
        b = ndtr((rho * tau_w - tau_r) / np.sqrt(s2))
        v11 = 1 - a - b
        variance = p11 * v11**2 + p10 * a**2 + p01 * b**2 - (p11 * v11 - p10 * a - p01 * b) ** 2
        log_density = -(tau_r**2 + tau_w**2 - 2 * rho * tau_r * tau_w) / (2 * s2)
        return np.asarray(np.sqrt(variance * s2 / n) * 2 * np.pi / np.exp(log_density))


def analytic_se(counts: ArrayLike) -> Floats:
    """Delta-method standard error of the Refusal Index: SE(RI) = SE(rho) 3 / (pi sqrt(1 - rho^2 / 4)).

    Args:
        counts: tables (..., 4) ordered n11, n10, n01, n00.

    Returns:
        Standard errors (...); NaN where a cell is empty.

    >>> round(float(analytic_se([1500, 360, 1658, 808])), 4)
    0.0238
    """
    rho = tetrachoric(counts)
    return rho_standard_error(counts, rho) * ri_slope(rho)


def bootstrap_counts(counts: ArrayLike, resamples: int, rng: int | Generator = 0) -> Floats:
    """Tables of `resamples` bootstrap samples of the questions: draws from Multinomial(n, n_ab / n).

    Drawing the four counts is the same experiment as drawing n questions with replacement, at a cost independent of n.

    Args:
        counts: one table (4,).
        resamples: number of replicates B, at least 1.
        rng: seed or generator.

    Returns:
        Counts (B, 4).

    Raises:
        ValueError: if `counts` is not one table or is empty, or `resamples` is below 1.

    >>> bootstrap_counts([30, 10, 20, 40], resamples=2).sum(axis=1)
    array([100., 100.])
    """
    table = as_counts(counts)
    if table.shape != (4,) or table.sum() <= 0:
        raise ValueError("counts must be one table n11, n10, n01, n00 with at least one question")
    _check_resamples(resamples)
    draws = np.random.default_rng(rng).multinomial(round(table.sum()), table / table.sum(), size=resamples)
    return draws.astype(float)


def paired_bootstrap(refused: Any, wrong: Any, resamples: int = 1000, rng: int | Generator = 0) -> Floats:
    """Bootstrap replicates of K Refusal Indices measured on the same N questions, resampled jointly.

    A question enters a resample with its outcomes under all K settings, so that differences between settings keep their
    pairing. Questions with equal outcomes are interchangeable: only the numbers of the (at most min(N, 4^K)) distinct
    outcome patterns are drawn.

    Args:
        refused: flags (K, N), one row per prompt or model.
        wrong: flags (K, N), wrong answers of the same questions in the same order.
        resamples: number of replicates B.
        rng: seed or generator.

    Returns:
        RI replicates (B, K); NaN where a resample has an empty margin.

    Raises:
        ValueError: if the flags are not two (K, N) arrays of one shape, or `resamples` is below 1.

    >>> flags = np.array([[1, 1, 0, 0, 1, 0, 0, 1], [1, 0, 0, 0, 1, 0, 1, 1]])
    >>> paired_bootstrap(flags, flags, resamples=3).shape
    (3, 2)
    """
    r, w = paired_flags(refused, wrong)
    if r.ndim != 2:
        raise ValueError(f"refused must have one row per setting, (K, N), not the shape {r.shape}")
    _check_resamples(resamples)
    cells = 2 * (~r) + (~w)  # 0, 1, 2, 3 for n11, n10, n01, n00
    code = np.zeros(r.shape[1], dtype=np.int64)
    for row in cells:  # renumbering after every setting keeps the codes below 4 N for any K
        _, first, code = np.unique(4 * code + row, return_index=True, return_inverse=True)
    frequency = np.bincount(code) / code.size
    member = (cells[:, first].T[:, :, None] == np.arange(4)).astype(float).reshape(first.size, -1)

    generator = np.random.default_rng(rng)
    block = max(1, BLOCK // first.size)
    replicates = np.empty((resamples, len(r)))
    for start in range(0, resamples, block):
        draws = generator.multinomial(code.size, frequency, size=min(block, resamples - start))
        tables = (draws @ member).reshape(len(draws), len(r), 4)
        replicates[start : start + len(draws)] = ri_from_rho(tetrachoric(tables))
    return replicates


def bootstrap_ri(counts: Floats, resamples: int, rng: int | Generator, correction: float = 0.0) -> Floats:
    """RI of bootstrap resamples of one table (4,), with `correction` added to every cell of each.

    Returns:
        Replicates (B,); NaN where a resample has an empty margin.
    """
    tables = bootstrap_counts(counts, resamples, rng)
    return np.where(empty_margin(tables), np.nan, ri_from_rho(tetrachoric(tables + correction)))


def percentile_interval(replicates: Floats, level: float) -> tuple[float, float]:
    """The central interval of the defined replicates (B,); (NaN, NaN) when more than 5 % of them are undefined.

    >>> percentile_interval(np.arange(101.0), 0.5)
    (25.0, 75.0)
    """
    check_level(level)
    defined = replicates[~np.isnan(replicates)]
    if defined.size < (1 - MOST_DROPPED) * replicates.size:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def check_level(level: float) -> None:
    """Raise ValueError unless `level` is a confidence level."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}: 0.95 gives a 95 % interval")


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")

"""The metrics the Refusal Index is compared with: factuality scores of a prompt, naive correlations of a table."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from refusal_index.table import Floats, as_counts


def correct_rate(counts: ArrayLike) -> Floats:
    """Share of all questions answered and right in the first pass: c = n00 / n.

    Args:
        counts: tables (..., 4) ordered n11, n10, n01, n00.

    >>> float(correct_rate([30, 10, 20, 40]))
    0.4
    """
    table = as_counts(counts)
    return _ratio(table[..., 3], table.sum(-1))


def refusal_rate(counts: ArrayLike) -> Floats:
    """Share of all questions refused in the first pass: r = (n11 + n10) / n.

    Args:
        counts: tables (..., 4) ordered n11, n10, n01, n00.

    >>> float(refusal_rate([30, 10, 20, 40]))
    0.4
    """
    table = as_counts(counts)
    return _ratio(table[..., 0] + table[..., 1], table.sum(-1))


def correct_given_attempted(correct_rate: ArrayLike, refusal_rate: ArrayLike) -> Floats:
    """Share of the attempted questions answered right: C/A = c / (1 - r); NaN where nothing is attempted.

    Args:
        correct_rate: c, share of all questions.
        refusal_rate: r, share of all questions.

    >>> float(correct_given_attempted(0.4, 0.5))
    0.8
    """
    c, r = _rates(correct_rate, refusal_rate)
    return _ratio(c, 1 - r)


def f_score(correct_rate: ArrayLike, refusal_rate: ArrayLike) -> Floats:
    """Harmonic mean of c and C/A: F = 2c / (2 - r).

    Args:
        correct_rate: c, share of all questions.
        refusal_rate: r, share of all questions.

    >>> round(float(f_score(0.6, 0.4)), 3)
    0.75
    """
    c, r = _rates(correct_rate, refusal_rate)
    return _ratio(2 * c, 2 - r)


def weighted_score(correct_rate: ArrayLike, refusal_rate: ArrayLike, penalty: float = 0.2) -> Floats:
    """Correct answers less a penalty on attempts: c - p (1 - r).

    Args:
        correct_rate: c, share of all questions.
        refusal_rate: r, share of all questions.
        penalty: p. The paper's text says 0.2; its large results table is computed with 1.

    >>> round(float(weighted_score(0.4, 0.5)), 3)
    0.3
    """
    c, r = _rates(correct_rate, refusal_rate)
    return np.asarray(c - penalty * (1 - r))


def phi(counts: ArrayLike) -> Floats:
    """Pearson correlation of the two flags, which is also their Spearman correlation: ranks of flags are flags.

    phi = (n11 n00 - n10 n01) / sqrt(n1. n0. n.1 n.0). It moves with the refusal rate: its largest value is set by the
    margins.

    Args:
        counts: tables (..., 4) ordered n11, n10, n01, n00.

    Returns:
        Coefficients (...) in [-1, 1]; NaN where a margin is empty.

    >>> round(float(phi([30, 10, 20, 40])), 4)
    0.4082
    """
    n11, n10, n01, n00 = np.moveaxis(as_counts(counts), -1, 0)
    margins = np.sqrt(n11 + n10) * np.sqrt(n01 + n00) * np.sqrt(n11 + n01) * np.sqrt(n10 + n00)
    return _ratio(n11 * n00 - n10 * n01, margins)


def yule_q(counts: ArrayLike) -> Floats:
    """Yule's Q = (n11 n00 - n10 n01) / (n11 n00 + n10 n01), a function of the odds ratio alone.

    Args:
        counts: tables (..., 4) ordered n11, n10, n01, n00.

    Returns:
        Coefficients (...) in [-1, 1]; NaN where both products are 0.

    >>> round(float(yule_q([30, 10, 20, 40])), 4)
    0.7143
    """
    n11, n10, n01, n00 = np.moveaxis(as_counts(counts), -1, 0)
    return _ratio(n11 * n00 - n10 * n01, n11 * n00 + n10 * n01)


def _rates(correct_rate: ArrayLike, refusal_rate: ArrayLike) -> tuple[Floats, Floats]:
    c, r = np.asarray(correct_rate, dtype=float), np.asarray(refusal_rate, dtype=float)
    if (c < 0).any() or (r < 0).any() or (c + r > 1 + 1e-9).any():
        raise ValueError("correct_rate and refusal_rate must be shares of all questions, 0 to 1 and at most 1 together")
    return c, r


def _ratio(top: Floats, bottom: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(bottom == 0, np.nan, np.divide(top, bottom))

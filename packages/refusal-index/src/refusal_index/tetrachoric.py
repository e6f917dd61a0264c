"""Tetrachoric correlation of 2x2 tables: the correlation of a Gaussian copula with the table's margins and corner."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri, owens_t

from refusal_index.table import Floats, as_counts, empty_margin

MAX_STEPS = 100  # bisection alone needs 50; the safeguard below is never slower by more than a factor 2
ANGLE_TOLERANCE = 1e-14
INFINITE = 40.0  # the normal CDF underflows to 0 there, so clipping keeps infinities out of the arithmetic


def ri_from_rho(rho: ArrayLike) -> Floats:
    """Spearman correlation of a Gaussian copula with correlation rho: RI = (6/pi) arcsin(rho/2).

    >>> float(ri_from_rho(1.0))
    1.0
    """
    return np.asarray(6 / np.pi * np.arcsin(np.asarray(rho, dtype=float) / 2))


def rho_from_ri(ri: ArrayLike) -> Floats:
    """Inverse of `ri_from_rho`: rho = 2 sin(pi RI / 6).

    >>> float(rho_from_ri(0.0))
    0.0
    """
    index = np.asarray(ri, dtype=float)
    return np.where(np.abs(index) == 1, index, 2 * np.sin(np.pi / 6 * index))  # 2 sin(pi/6) rounds below 1


def ri_slope(rho: ArrayLike) -> Floats:
    """Derivative of the Refusal Index in rho: 3 / (pi sqrt(1 - rho^2 / 4)).

    >>> round(float(ri_slope(0.0)), 4)
    0.9549
    """
    return np.asarray(3 / (np.pi * np.sqrt(1 - np.asarray(rho, dtype=float) ** 2 / 4)))


def bivariate_normal_cdf(h: ArrayLike, k: ArrayLike, rho: ArrayLike) -> Floats:
    """P(Z1 <= h, Z2 <= k) of a standard bivariate normal with correlation rho, by Owen's T function.

    Phi2(h, k; rho) = [Phi(h) + Phi(k)] / 2 - T(h, (k/h - rho)/s) - T(k, (h/k - rho)/s) for h, k <= 0 with
    s = sqrt(1 - rho^2) (Owen 1956); the other quadrants follow by reflection. Owen's T is exact to rounding for every
    rho in [-1, 1] and six times cheaper than 40 quadrature nodes.

    Args:
        h, k: limits, infinities allowed; broadcast together with `rho`.
        rho: correlations in [-1, 1].

    Returns:
        Probabilities of the broadcast shape.

    Raises:
        ValueError: if a correlation lies outside [-1, 1].

    >>> round(float(bivariate_normal_cdf(0.0, 0.0, 0.5)), 6)  # 1/4 + arcsin(rho) / 2 pi
    0.333333
    """
    x, y, correlation = np.broadcast_arrays(*(np.asarray(a, dtype=float) for a in (h, k, rho)))
    if not (np.abs(correlation) <= 1).all():
        raise ValueError("rho must lie in [-1, 1]")
    x, y = np.clip(x, -INFINITE, INFINITE), np.clip(y, -INFINITE, INFINITE)
    opposite = (x > 0) != (y > 0)
    corner = _lower_quadrant(-np.abs(x), -np.abs(y), np.arccos(np.where(opposite, -correlation, correlation)))
    both_upper = 1 - (ndtr(-x) + ndtr(-y)) + corner
    one_upper = ndtr(np.minimum(x, y)) - corner
    value = np.where(opposite, one_upper, np.where(x > 0, both_upper, corner))
    return np.asarray(np.clip(value, np.maximum(0, ndtr(x) + ndtr(y) - 1), ndtr(np.minimum(x, y))))


def tetrachoric(counts: ArrayLike) -> Floats:
    """Tetrachoric correlation: the maximum-likelihood rho of a Gaussian copula whose margins are the table's own.

    With the margins r = (n11 + n10)/n and mu = (n11 + n01)/n fixed the likelihood is saturated, so its maximum is the
    one root of Phi2(Phi^-1(r), Phi^-1(mu); rho) = n11/n. It is found in the angle arccos(rho), where the slope is
    -exp(-(h^2 + k^2 - 2 h k rho) / (2 (1 - rho^2))) / (2 pi), by Newton steps that fall back to bisection.

    Args:
        counts: tables (..., 4) ordered n11, n10, n01, n00; need not be whole numbers.

    Returns:
        rho (...): +1 if n10 or n01 is empty, -1 if n11 or n00 is, NaN if a whole row or column is.

    Raises:
        ValueError: if the last axis is not 4 long, or a count is negative or not finite.

    Source: arXiv 2510.01782, section 3 and appendix (estimator); the paper searches the likelihood instead.

    >>> round(float(tetrachoric([40, 10, 10, 40])), 6)  # median splits: sin(2 pi (0.4 - 1/4)), Sheppard
    0.809017
    """
    table = as_counts(counts)
    n11, n10, n01, n00 = np.moveaxis(table, -1, 0)
    rho = np.full(n11.shape, np.nan)
    defined = ~empty_margin(table)
    rho[defined & (n10 * n01 == 0)] = 1.0
    rho[defined & (n11 * n00 == 0)] = -1.0
    inner = defined & (table > 0).all(-1)
    if inner.any():
        rho[inner] = _inner_root(*(cell[inner] for cell in (n11, n10, n01, n00)))
    return rho


def _inner_root(n11: Floats, n10: Floats, n01: Floats, n00: Floats) -> Floats:
    # Both margins are reflected below 1/2: tail probabilities then keep their relative accuracy, and refuse <-> answer
    # changes nothing but the sign.
    flip = n11 + n10 > n01 + n00
    n11, n10, n01, n00 = (np.where(flip, a, b) for a, b in ((n01, n11), (n00, n10), (n11, n01), (n10, n00)))
    sign = np.where(flip, -1.0, 1.0)
    flip = n11 + n01 > n10 + n00
    n11, n10, n01, n00 = (np.where(flip, a, b) for a, b in ((n10, n11), (n11, n10), (n00, n01), (n01, n00)))
    sign = np.where(flip, -sign, sign)

    n = n11 + n10 + n01 + n00
    r, mu = (n11 + n10) / n, (n11 + n01) / n
    # Bonett & Price (2005): closed form good to about 0.01, which saves half of the Newton steps.
    power = (1 - np.abs(r - mu) / 5 - (0.5 - np.minimum(r, mu)) ** 2) / 2
    start = np.pi / (1 + np.exp(power * (np.log(n11) + np.log(n00) - np.log(n10) - np.log(n01))))
    return sign * np.cos(_solve_angle(ndtri(r), ndtri(mu), n11 / n, start))


def _solve_angle(h: Floats, k: Floats, corner: Floats, start: Floats) -> Floats:
    """The angle arccos(rho) at which the lower quadrant of (h, k) holds the probability `corner`."""
    angle = start.copy()
    active = np.arange(start.size)
    low, high = np.zeros(start.size), np.full(start.size, np.pi)
    last = np.full(start.size, np.pi)
    for _ in range(MAX_STEPS):
        x, hx, kx = angle[active], h[active], k[active]
        excess = _lower_quadrant(hx, kx, x) - corner[active]
        low[active] = np.where(excess > 0, x, low[active])
        high[active] = np.where(excess > 0, high[active], x)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            step = 2 * np.pi * excess * np.exp(((hx - kx) / np.sin(x)) ** 2 / 2 + hx * kx / (1 + np.cos(x)))
        stays = (x + step > low[active]) & (x + step < high[active]) & (np.abs(step) < last[active] / 2)
        moved = np.where(stays, x + step, (low[active] + high[active]) / 2)
        moved = np.where(excess == 0, x, moved)
        angle[active], last[active] = moved, np.abs(moved - x)
        active = active[np.abs(moved - x) > ANGLE_TOLERANCE]
        if active.size == 0:
            break
    return angle


def _lower_quadrant(h: Floats, k: Floats, angle: Floats) -> Floats:
    """Phi2(h, k; cos(angle)) for h, k <= 0; in the angle nothing cancels as rho -> 1."""
    h, k = -np.abs(h), -np.abs(k)  # -0.0, so that k / h is +inf there and Owen's T takes its limit
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        gap_h = np.where(h == k, 0.0, (k - h) / (h * np.sin(angle)))
        gap_k = np.where(h == k, 0.0, (h - k) / (k * np.sin(angle)))
    slope = np.tan(angle / 2)
    return np.asarray((ndtr(h) + ndtr(k)) / 2 - (owens_t(h, gap_h + slope) + owens_t(k, gap_k + slope)))

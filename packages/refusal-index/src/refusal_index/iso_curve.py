"""Iso-RI curves: the correct rate a model of given Refusal Index keeps as its refusal rate is moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from refusal_index.estimate import RefusalIndex
from refusal_index.table import Floats
from refusal_index.tetrachoric import bivariate_normal_cdf, rho_from_ri

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def iso_curve(mu: ArrayLike, ri: ArrayLike, r_grid: ArrayLike) -> Floats:
    """Correct rate kept at refusal rate r: a(r) = Phi2(Phi^-1(1 - r), Phi^-1(1 - mu); rho(RI)).

    a(0) = 1 - mu, a(1) = 0; it falls in r and rises in RI.

    Args:
        mu: share of questions answered wrong when none may be refused.
        ri: Refusal Index in [-1, 1].
        r_grid: refusal rates; broadcasts with `mu` and `ri`.

    Returns:
        Correct rates c(r), shares of all questions.

    Raises:
        ValueError: if `mu` or `r_grid` lies outside [0, 1] or `ri` outside [-1, 1].

    Source: arXiv 2510.01782, iso-RI curves.

    >>> iso_curve(0.8, 0.0, [0.0, 0.5, 1.0]).round(3).tolist()
    [0.2, 0.1, 0.0]
    """
    mu, ri, r = (np.asarray(x, dtype=float) for x in (mu, ri, r_grid))
    for name, value, low in (("mu", mu, 0), ("ri", ri, -1), ("r_grid", r, 0)):
        if not ((value >= low) & (value <= 1)).all():
            raise ValueError(f"{name} must lie in [{low}, 1]")
    return bivariate_normal_cdf(-ndtri(r), -ndtri(mu), rho_from_ri(ri))


def plot_iso_curves(
    measured: Mapping[str, Sequence[RefusalIndex]] | None = None,
    *,
    mu: float | None = None,
    ri: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
) -> Figure:
    """Iso-RI curves in the plane of refusal rate and correct rate, with measured prompts on top.

    A model that keeps its Refusal Index moves along one curve as its prompt makes it refuse more.

    Args:
        measured: results of a model's prompts by model name; drawn with 95 % Wilson intervals of both rates.
        mu: error rate the curves start from; the mean error rate of `measured` when left out.
        ri: Refusal Indices to draw.

    Returns:
        The figure; the caller saves or shows it.

    Raises:
        ValueError: if neither `mu` nor `measured` is given, or `iso_curve` refuses a value.
    """
    from matplotlib.figure import Figure

    models = {name: sorted(results, key=lambda res: res.refusal_rate) for name, results in (measured or {}).items()}
    if mu is None:
        rates = [result.error_rate for results in models.values() for result in results]
        if not rates:
            raise ValueError("mu must be given when no prompt was measured")
        mu = float(np.mean(rates))

    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.subplots()
    grid = np.linspace(0, 1, 401)
    curves = {index: iso_curve(mu, index, grid) for index in sorted(ri)}
    widest = int(np.argmax(np.ptp(list(curves.values()), axis=0)))
    for (index, curve), shade in zip(curves.items(), np.linspace(0.7, 0.3, len(curves)), strict=True):
        axes.plot(grid, curve, color=str(shade), linewidth=1.2, zorder=1)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        text = f"RI {_shown(index)}"
        axes.text(grid[widest], curve[widest], text, color="0.3", fontsize=8, ha="center", va="center", bbox=box)

    for number, (name, results) in enumerate(models.items()):
        n = np.array([result.n for result in results])
        r = np.array([result.refusal_rate for result in results])
        c = np.array([result.counts[3] / result.n for result in results])
        label = f"{name}: RI " + ", ".join(_shown(result.ri) for result in results)
        reach_r, reach_c = _wilson_reach(r, n), _wilson_reach(c, n)
        axes.errorbar(
            r, c, yerr=reach_c, xerr=reach_r, fmt="o:", color=f"C{number}", ms=5, lw=1, capsize=2.5, label=label
        )

    axes.set(xlim=(0, 1), ylim=(0, None), xlabel="refusal rate $r$", ylabel="correct rate $c$ (of all questions)")
    axes.set_title(f"Curves of equal Refusal Index at error rate $\\mu$ = {mu:.2f}", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    if models:
        axes.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def _shown(ri: float) -> str:
    return "\N{EN DASH}" if np.isnan(ri) else f"{ri:.2f}".replace("-", "\N{MINUS SIGN}")


def _wilson_reach(share: Floats, n: Floats) -> Floats:
    """Distances (2, K) from shares down and up to their 95 % Wilson limits, as `errorbar` wants them."""
    z2 = float(ndtri(0.975)) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return np.maximum([share - centre + half, centre + half - share], 0)

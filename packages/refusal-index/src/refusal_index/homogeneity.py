"""Is one Refusal Index enough for all prompts? Tests of one common correlation over K settings.

A single 2x2 table cannot test the Gaussian copula: one parameter fits one free cell exactly. K tables of one model at
different refusal rates can, because the copula says that rho is the same in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.random import Generator
from scipy.special import chdtrc

from refusal_index.estimate import RefusalIndex, check_resamples
from refusal_index.intervals import paired_bootstrap, rho_standard_error
from refusal_index.table import Floats, cell_counts
from refusal_index.tetrachoric import rho_from_ri, ri_from_rho, tetrachoric


@dataclass(frozen=True, kw_only=True)
class Homogeneity:
    """Outcome of a test that K settings share one Refusal Index.

    Attributes:
        statistic: Q = sum_k (rho_k - rho)^2 / SE_k^2 with rho the mean weighted by 1 / SE_k^2.
        df: K - 1.
        p_value: small when one index is not enough.
        pooled_ri: Refusal Index of the weighted mean rho.
        method: "chi2" for independent questions, "paired-bootstrap" for shared ones.
    """

    statistic: float
    df: int
    p_value: float
    pooled_ri: float
    method: Literal["chi2", "paired-bootstrap"]


def homogeneity(results: Sequence[RefusalIndex]) -> Homogeneity:
    """Test one common rho over K *independent* question sets: Q ~ chi-square with K - 1 degrees of freedom.

    Args:
        results: K estimates, each from questions of its own.

    Returns:
        Statistic, p-value and pooled index.

    Raises:
        ValueError: if there are fewer than 2 estimates, or one has no standard error (undefined, or an empty cell).

    >>> from refusal_index.estimate import refusal_index
    >>> tables = [(1500, 360, 1658, 808), (300, 50, 3000, 976)]
    >>> test = homogeneity([refusal_index(counts=table, ci="analytic") for table in tables])
    >>> test.df, round(test.p_value, 2)
    (1, 0.12)
    """
    rho = np.array([result.rho for result in results])
    weight = _weights(np.array([result.rho_se for result in results]))
    statistic = float(_spread(rho, weight))
    return Homogeneity(
        statistic=statistic,
        df=len(rho) - 1,
        p_value=float(chdtrc(len(rho) - 1, statistic)),
        pooled_ri=float(ri_from_rho(np.average(rho, weights=weight))),
        method="chi2",
    )


def paired_homogeneity(refused: Any, wrong: Any, *, resamples: int = 1000, rng: int | Generator = 0) -> Homogeneity:
    """Test one common rho over K settings measured on the *same* N questions.

    The statistic is Q as for independent sets. Shared questions make the rho_k dependent, so that Q is no longer
    chi-square; its null distribution is that of Q*, the same form in the centred replicates rho*_k - rho_k of a joint
    bootstrap over questions, which have the dependence of the estimates and a common (zero) mean.
    p = (1 + #{Q* >= Q}) / (B + 1).

    Args:
        refused: flags (K, N), one row per prompt.
        wrong: flags (K, N) of the same questions in the same order.
        resamples: bootstrap replicates B; those with an empty margin are left out.
        rng: seed or generator.

    Returns:
        Statistic, p-value and pooled index.

    Raises:
        ValueError: if the flags are not (K, N) with K >= 2, one setting has an empty cell, or `resamples` is no whole
            number of at least 1.

    >>> rng = np.random.default_rng(0)
    >>> latent = rng.normal(size=500)
    >>> refused = latent + rng.normal(size=(2, 500)) > [[0.0], [1.0]]
    >>> paired_homogeneity(refused, np.tile(latent > 0, (2, 1))).p_value > 0.05
    True
    """
    check_resamples(resamples)
    replicates = rho_from_ri(paired_bootstrap(refused, wrong, resamples, rng))
    counts = cell_counts(refused, wrong)
    rho = tetrachoric(counts)
    weight = _weights(rho_standard_error(counts, rho))
    statistic = float(_spread(rho, weight))
    null = _spread(replicates[~np.isnan(replicates).any(axis=1)] - rho, weight)
    return Homogeneity(
        statistic=statistic,
        df=len(rho) - 1,
        p_value=float((1 + (null >= statistic).sum()) / (1 + len(null))),
        pooled_ri=float(ri_from_rho(np.average(rho, weights=weight))),
        method="paired-bootstrap",
    )


def _weights(rho_se: Floats) -> Floats:
    if len(rho_se) < 2:
        raise ValueError("results must hold at least 2 settings to compare")
    if not np.isfinite(rho_se).all():
        lost = [int(k) for k in np.flatnonzero(~np.isfinite(rho_se))]
        raise ValueError(f"settings {lost} have no standard error (an empty cell): leave them out of the test")
    return rho_se**-2


def _spread(rho: Floats, weight: Floats) -> Floats:
    centre = np.average(rho, weights=weight, axis=-1)[..., None]
    return np.asarray((weight * (rho - centre) ** 2).sum(-1))

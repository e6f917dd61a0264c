"""How much a metric moves when only the refusal rate of one model is moved (by the prompt)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from refusal_index.table import Floats


def relative_range(values: ArrayLike, refusal_rates: ArrayLike) -> Floats:
    """Signed relative change from the least- to the most-refusing prompt: Delta = (v_most - v_least) / |mean v|.

    Args:
        values: metric (..., K) over K prompts.
        refusal_rates: refusal rates (..., K) of the same prompts.

    Returns:
        Delta (...); NaN where the mean is 0.

    Raises:
        ValueError: if the shapes differ or K < 2.

    Source: arXiv 2510.01782, stability tables, where it is printed as max - min but signed.

    >>> round(float(relative_range([0.2, 0.4, 0.3], refusal_rates=[0.1, 0.9, 0.5])), 3)
    0.667
    """
    metric, rates = _prompts(values), np.asarray(refusal_rates, dtype=float)
    if metric.shape != rates.shape:
        raise ValueError(f"values and refusal_rates must have one shape, not {metric.shape} and {rates.shape}")
    most = np.take_along_axis(metric, rates.argmax(-1)[..., None], axis=-1)[..., 0]
    least = np.take_along_axis(metric, rates.argmin(-1)[..., None], axis=-1)[..., 0]
    return _per_mean(most - least, metric)


def coefficient_of_variation(values: ArrayLike) -> Floats:
    """Standard deviation over prompts in units of the mean: CV = std(v) / |mean v|, std with ddof = 0.

    Args:
        values: metric (..., K) over K prompts.

    Returns:
        CV (...); NaN where the mean is 0.

    Raises:
        ValueError: if K < 2.

    >>> float(coefficient_of_variation([1.0, 3.0]))
    0.5
    """
    metric = _prompts(values)
    return _per_mean(metric.std(-1), metric)


def _prompts(values: ArrayLike) -> Floats:
    metric = np.asarray(values, dtype=float)
    if metric.ndim == 0 or metric.shape[-1] < 2:
        raise ValueError("values must hold the metric of at least 2 prompts on its last axis")
    return metric


def _per_mean(amount: Floats, metric: Floats) -> Floats:
    mean = np.abs(metric.mean(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(mean == 0, np.nan, np.divide(amount, mean))

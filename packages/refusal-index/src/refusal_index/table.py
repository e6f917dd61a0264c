"""The 2x2 table of refusals against wrong answers: n11 refused and wrong, n10 refused and right, n01, n00 answered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
CELLS = ("n11", "n10", "n01", "n00")


def as_counts(counts: ArrayLike) -> Floats:
    """Tables as an array (..., 4) ordered n11, n10, n01, n00.

    Raises:
        ValueError: if the last axis is not 4 long, or an entry is negative or not finite.

    >>> as_counts([1500, 360, 1658, 808])
    array([1500.,  360., 1658.,  808.])
    """
    table = np.asarray(counts, dtype=float)
    if table.ndim == 0 or table.shape[-1] != 4:
        raise ValueError(f"counts must hold n11, n10, n01, n00 on its last axis, not have the shape {table.shape}")
    if not np.isfinite(table).all() or (table < 0).any():
        raise ValueError("counts must be finite and not negative: correct the n11, n10, n01, n00 given")
    return table


def as_flags(name: str, values: Any) -> NDArray[np.bool_]:
    """Boolean flags (..., N) from booleans or 0/1 numbers of any container, refusing everything else.

    Args:
        name: the argument's name, for the error message.
        values: array, list or pandas Series of True/False or 1/0.

    Raises:
        ValueError: if there are no questions, or a value is missing or neither true nor false.

    >>> as_flags("refused", [1, 0, 1])
    array([ True, False,  True])
    """
    flags = np.asarray(values)
    if flags.ndim == 0 or flags.size == 0:
        raise ValueError(f"{name} holds no questions: give one True/False per question")
    if flags.dtype == np.bool_:
        return flags
    if flags.dtype == object:  # what pandas hands out for nullable and mixed columns
        known = np.fromiter((isinstance(v, bool | int | np.bool_ | np.integer) for v in flags.flat), bool, flags.size)
        valid = known.all() and bool(np.isin(flags.astype(float), (0, 1)).all())
    else:
        valid = flags.dtype.kind in "iuf" and bool(((flags == 0) | (flags == 1)).all())
    if not valid:
        raise ValueError(f"{name} must hold only True/False (or 1/0), one per question: drop or grade the others first")
    return flags.astype(bool)


def paired_flags(refused: Any, wrong: Any) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """`refused` and `wrong` as boolean arrays of one shape, checked to speak of the same questions.

    Raises:
        ValueError: if the shapes differ, or both are pandas objects whose indices differ.
    """
    if isinstance(refused, pd.Series) and isinstance(wrong, pd.Series) and not refused.index.equals(wrong.index):
        raise ValueError("refused and wrong have different indices: align them, e.g. wrong = wrong.loc[refused.index]")
    r, w = as_flags("refused", refused), as_flags("wrong", wrong)
    if r.shape != w.shape:
        raise ValueError(f"refused and wrong must cover the same questions, not the shapes {r.shape} and {w.shape}")
    return r, w


def cell_counts(refused: Any, wrong: Any) -> Floats:
    """Counts n_ab = #{R = a, W = b} over the last axis.

    Args:
        refused: flags (..., N), whether question i was refused in the first pass.
        wrong: flags (..., N), whether its answer was wrong (the forced answer where it was refused).

    Returns:
        Counts (..., 4) ordered n11, n10, n01, n00.

    Raises:
        ValueError: as `as_flags` and `paired_flags`.

    >>> cell_counts([1, 1, 0, 0], [1, 0, 0, 0])
    array([1., 1., 0., 2.])
    """
    r, w = paired_flags(refused, wrong)
    both, n = (r & w).sum(-1), r.shape[-1]
    r_sum, w_sum = r.sum(-1), w.sum(-1)
    return np.stack([both, r_sum - both, w_sum - both, n - r_sum - w_sum + both], axis=-1).astype(float)


def empty_margin(counts: Floats) -> NDArray[np.bool_]:
    """Whether a margin (refused, answered, wrong, right) holds no question, so that no correlation is defined."""
    n11, n10, n01, n00 = np.moveaxis(counts, -1, 0)
    smallest = np.minimum(np.minimum(n11 + n10, n01 + n00), np.minimum(n11 + n01, n10 + n00))
    return np.asarray(smallest == 0)

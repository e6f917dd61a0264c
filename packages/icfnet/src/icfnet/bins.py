"""Discrete time: bins whose edges are quantiles of the survival times of the patients with an event (section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUDGE = 1e-6  # months; so that the earliest and the latest time of the cohort lie inside the bins


@dataclass(frozen=True, kw_only=True)
class TimeBins:
    """n left-closed bins [e_k, e_{k+1}).

    Fit them on the patients to train on: quartiles over the whole cohort, as the authors take them, tell the labels
    of the training patients something about the test patients.

    Args:
        edges: n + 1 increasing times, months.

    Raises:
        ValueError: when there are fewer than three edges or they do not increase.

    >>> bins = TimeBins.fit(np.array([1.0, 2, 3, 4, 9]), np.array([True, True, True, True, False]), n_bins=4)
    >>> bins.label(np.array([0.0, 1, 2.4, 4, 100])).tolist()
    [0, 0, 1, 3, 3]
    """

    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", tuple(map(float, self.edges)))
        if len(self.edges) < 3 or not np.all(np.diff(self.edges) > 0) or not np.all(np.isfinite(self.edges)):
            raise ValueError(f"edges must be three or more increasing times, got {self.edges}")

    @classmethod
    def fit(cls, time: NDArray[np.float64], event: NDArray[np.bool_], *, n_bins: int = 4) -> TimeBins:
        """Edges at the quantiles of the uncensored times, the outer ones at min - 1e-6 and max + 1e-6 of all times.

        Args:
            time: `[n]` months.
            event: `[n]` whether the event was seen.
            n_bins: n.

        Raises:
            ValueError: without an event, with fewer distinct event times than bins, or with ties that empty a bin.
        """
        uncensored = np.asarray(time, dtype=float)[np.asarray(event, dtype=bool)]
        distinct = len(np.unique(uncensored))
        if distinct == 0:
            raise ValueError("event: no patient has an event; time bins need uncensored patients")
        if distinct < n_bins:
            raise ValueError(f"n_bins={n_bins} needs as many distinct event times, got {distinct}; use fewer bins")
        edges = np.quantile(uncensored, np.linspace(0, 1, n_bins + 1))
        edges[0], edges[-1] = np.min(time) - NUDGE, np.max(time) + NUDGE
        if not np.all(np.diff(edges) > 0):
            raise ValueError(f"n_bins={n_bins}: tied event times leave a bin empty; use fewer bins")
        return cls(edges=tuple(edges.tolist()))

    @property
    def n(self) -> int:
        """The number of bins."""
        return len(self.edges) - 1

    def label(self, time: NDArray[np.float64]) -> NDArray[np.int64]:
        """The bin of each time, 0..n-1: earlier than all edges falls into 0, later than all into n - 1."""
        inner = np.asarray(self.edges[1:-1])
        labels: NDArray[np.int64] = np.searchsorted(inner, time, side="right").astype(np.int64)
        return labels

    def interpolate(self, survival: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Survival at any times from survival at the right edges, linear inside a bin.

        S is 1 up to the first edge and S_{n-1} after the last. Linear is the constant-density interpolation of Kvamme
        and Borgan (2021, section 4.1): four bins are too coarse to be a step function under a Brier score [design].

        Args:
            survival: `[m, n]` S_k.
            times: `[t]` months.

        Returns:
            `[m, t]`.

        >>> TimeBins(edges=(0, 10, 20)).interpolate(np.array([[0.8, 0.4]]), np.array([5.0, 15, 99])).round(6).tolist()
        [[0.9, 0.6, 0.4]]
        """
        edges = np.asarray(self.edges)
        at = np.clip(np.asarray(times, dtype=float), edges[0], edges[-1])
        bin_ = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, self.n - 1)
        share = (at - edges[bin_]) / (edges[bin_ + 1] - edges[bin_])
        full = np.concatenate([np.ones((len(survival), 1)), survival], axis=1)
        interpolated: NDArray[np.float64] = full[:, bin_] * (1 - share) + full[:, bin_ + 1] * share
        return interpolated

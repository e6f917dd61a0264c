"""A watch on the stream of queries of each client, and how early and how wrongly it raises an alarm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from aisec_common.seeding import derived_seed
from torch import Tensor
from torch.nn.functional import normalize

from gfmextract.choices import UnfitDefense

FIRST = 20
"""Queries before the first reading."""
SPAN = 256
"""Reference vectors that the kernel distance is taken to."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the stream of one client looks like after so many queries; higher is always more suspicious.

    Args:
        queries: how many the client had sent.
        abnormality: 1 - W, with W of the Shapiro-Wilk test of distances to the nearest previous query.
        coverage: share of the reference cells that were hit.
        mmd2: squared maximum mean discrepancy to the reference, unbiased, so that it may be below 0.
    """

    queries: int
    abnormality: float
    coverage: float
    mmd2: float


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Readings above which an alarm is raised; `QueryMonitor.calibrated` takes all three from benign streams.

    Args:
        abnormality: 0.05 is PRADA's W < 0.95.
        coverage: without a default of its own, as it depends on how long benign streams are.
        mmd2: without a default of its own, as it depends on the reference.
    """

    abnormality: float = 0.05
    coverage: float = math.inf
    mmd2: float = math.inf

    def exceeded(self, reading: Reading) -> tuple[str, ...]:
        """Names of the statistics that raise an alarm."""
        return tuple(name for name in STATISTICS if getattr(reading, name) > getattr(self, name))


STATISTICS = ("abnormality", "coverage", "mmd2")


@dataclass
class _Client:
    """Latest queries and distances of a client, the cells it hit and what was read so far."""

    cells: int
    seen: int = 0
    latest: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    distances: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    hit: set[int] = field(default_factory=set)
    readings: list[Reading] = field(default_factory=list)


class QueryMonitor:
    """Reads three statistics off the stream of each client, every `step` queries.

    abnormality = 1 - W(d_1, ..., d_n), d_i = distance of query i to the nearest query before it; queries that an attack
    makes up do not have the bell-shaped distances of natural ones; values beyond three standard deviations are left out
    coverage = share of k-means cells of the reference that were hit
    mmd2 = mean k(q, q') + mean k(r, r') - 2 mean k(q, r), k = exp(-norm(a - b)^2 / (2 s^2)), with s the median distance
    within the reference

    Queries are unit vectors: the victim's undefended embeddings, which a service has at hand.

    Args:
        reference: [n, d] embeddings of benign traffic.
        cells: number of k-means cells.
        thresholds: when to raise an alarm.
        step: queries between two readings.
        window: latest queries that distances and mmd2 look at; coverage looks at all.
        seed: of cells and of the part of the reference that mmd2 looks at.

    Raises:
        ValueError: for fewer reference vectors than cells, fewer than two cells, or a step or window below 2 or
            `FIRST`.

    Source: PRADA (Juuti et al., EuroS&P 2019), MMD (Gretton et al., JMLR 2012); the coverage is ours.
    """

    def __init__(
        self,
        reference: Tensor,
        *,
        cells: int = 32,
        thresholds: Thresholds = Thresholds(),
        step: int = 10,
        window: int = 400,
        seed: int = 0,
    ) -> None:
        from sklearn.cluster import KMeans  # loading it takes seconds, and most runs need none

        if reference.ndim != 2 or not 2 <= cells <= len(reference):
            raise ValueError(
                f"cells must lie between 2 and the rows of reference, got {cells} for {list(reference.shape)}"
            )
        if step < 2 or window < FIRST:
            raise ValueError(f"step must be at least 2 and window at least {FIRST}, got {step} and {window}")
        self.thresholds, self.step, self.window, self.cells = thresholds, step, window, cells
        unit = normalize(reference.double())
        drawn = derived_seed(seed, "monitor") % 2**32
        self._centres = torch.from_numpy(KMeans(cells, n_init=4, random_state=drawn).fit(unit.numpy()).cluster_centers_)
        part = torch.randperm(len(unit), generator=torch.Generator().manual_seed(drawn))[:SPAN]
        self._span = unit[part]
        distances = torch.pdist(self._span)
        self._width = float(distances.median().clamp(min=1e-6))
        self._within = float(self._kernel(distances).mean())
        self._clients: dict[str, _Client] = {}

    def observe(self, client: str, vectors: Tensor) -> None:
        """Takes note of queries [G, d] of a client, in the order they came.

        Raises:
            ValueError: for vectors of another width than the reference.
        """
        self._read(self._clients.setdefault(client, _Client(self.cells)), vectors)

    def readings(self, client: str) -> list[Reading]:
        """What was read off the client's stream so far; empty for a client that is not known."""
        return list(self._clients[client].readings) if client in self._clients else []

    def alarm(self, client: str) -> int | None:
        """After how many queries of the client the first alarm came; None for none so far."""
        return self._first_alarm(self.readings(client))

    def watch(self, stream: Tensor) -> list[Reading]:
        """The readings of a whole stream [n, d] of its own, which leaves no trace in the monitor."""
        client = _Client(self.cells)
        self._read(client, stream)
        return client.readings

    def assigned(self, vectors: Tensor) -> Tensor:
        """[n] the cell of each vector."""
        return torch.cdist(normalize(vectors.double()), self._centres).argmin(1)

    def calibrated(self, benign: Sequence[Tensor], *, false_alarms: float = 0.05) -> QueryMonitor:
        """This monitor, empty, with thresholds that at most about such a share of benign streams ever exceeds.

        Each statistic gets a third of the share; its threshold is that quantile, over streams, of its highest reading.
        From N streams no share below about 3 / (N + 1) can be had, whatever is asked for.

        Args:
            benign: N streams [n, d] of benign clients, as long as later ones.
            false_alarms: share between 0 and 1.

        Raises:
            ValueError: for a share outside.
            UnfitDefense: for no stream, or one too short for a reading.
        """
        if not 0 < false_alarms < 1:
            raise ValueError(f"false_alarms must lie between 0 and 1, got {false_alarms}")
        peaks = self._peaks(benign, "benign")
        level = 1 - false_alarms / len(STATISTICS)
        highest = {name: float(np.quantile(peaks[name], level, method="higher")) for name in STATISTICS}
        other = QueryMonitor.__new__(QueryMonitor)
        other.__dict__.update(self.__dict__, thresholds=replace(self.thresholds, **highest), _clients={})
        return other

    def report(self, benign: Sequence[Tensor], extracting: Sequence[Tensor]) -> AlarmReport:
        """How well the statistics tell simulated benign streams from extracting ones, and what the thresholds do.

        Raises:
            UnfitDefense: for no stream of a kind, or one too short for a reading.
        """
        from sklearn.metrics import roc_auc_score

        honest, crawling = self._peaks(benign, "benign"), self._peaks(extracting, "extracting")
        truth = [0] * len(benign) + [1] * len(extracting)
        alarms = {
            name: tuple(self._first_alarm(self.watch(stream)) for stream in streams)
            for name, streams in (("benign", benign), ("extracting", extracting))
        }
        return AlarmReport(
            auroc={name: float(roc_auc_score(truth, honest[name] + crawling[name])) for name in STATISTICS},
            false_alarm_rate=sum(each is not None for each in alarms["benign"]) / len(benign),
            detection_rate=sum(each is not None for each in alarms["extracting"]) / len(extracting),
            alarm_times=alarms["extracting"],
        )

    def _peaks(self, streams: Sequence[Tensor], argument: str) -> dict[str, list[float]]:
        read = [self.watch(stream) for stream in streams]
        if not read or not all(read):
            short = next((i for i, each in enumerate(read) if not each), None)
            which = "is empty" if short is None else f"holds stream {short} of {len(streams[short])} queries"
            raise UnfitDefense(f"{argument} {which}: pass streams of at least {max(FIRST, self.step)} queries")
        return {name: [max(getattr(each, name) for each in one) for one in read] for name in STATISTICS}

    def _first_alarm(self, readings: Sequence[Reading]) -> int | None:
        return next((each.queries for each in readings if self.thresholds.exceeded(each)), None)

    def _read(self, client: _Client, vectors: Tensor) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != self._span.shape[1]:
            raise ValueError(f"vectors must be [queries, {self._span.shape[1]}], got {list(vectors.shape)}")
        unit = normalize(vectors.double())
        done = 0
        while done < len(unit):
            block = unit[done : done + self.step - client.seen % self.step]
            self._note(client, block)
            done += len(block)
            if client.seen % self.step == 0 and client.seen >= FIRST:
                client.readings.append(self._reading(client))

    def _note(self, client: _Client, block: Tensor) -> None:
        before = client.latest.reshape(-1, block.shape[1]).double()
        known = torch.cat([before, block])
        place = torch.arange(len(block)).unsqueeze(1) + len(before)
        other = torch.arange(len(known))
        apart = torch.cdist(block, known, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = apart.masked_fill((other >= place) | (other < place - self.window), math.inf).amin(1)
        client.distances = torch.cat([client.distances, nearest[nearest.isfinite()]])[-self.window :]
        client.latest = known[-self.window :]
        client.hit |= set(self.assigned(block).tolist())
        client.seen += len(block)

    def _reading(self, client: _Client) -> Reading:
        return Reading(
            queries=client.seen,
            abnormality=1.0 - _bell_shape(client.distances.numpy()),
            coverage=len(client.hit) / self.cells,
            mmd2=self._within
            + float(self._kernel(torch.pdist(client.latest)).mean())
            - 2 * float(self._kernel(torch.cdist(client.latest, self._span)).mean()),
        )

    def _kernel(self, distances: Tensor) -> Tensor:
        return torch.exp(-distances.square() / (2 * self._width**2))


@dataclass(frozen=True, kw_only=True)
class AlarmReport:
    """What a monitor does on simulated clients.

    Args:
        auroc: of each statistic's highest reading, extracting over benign streams; below 0.5 it is the benign streams
            that look suspicious to it.
        false_alarm_rate: share of benign streams with an alarm.
        detection_rate: share of extracting streams with an alarm.
        alarm_times: queries until the alarm of each extracting stream, None without one.
    """

    auroc: dict[str, float]
    false_alarm_rate: float
    detection_rate: float
    alarm_times: tuple[int | None, ...]


def _bell_shape(distances: np.ndarray) -> float:
    """Shapiro-Wilk's W of distances within three standard deviations; 0 where they are all one, as of repeats."""
    from scipy.stats import shapiro

    inside = distances[np.abs(distances - distances.mean()) <= 3 * distances.std()]
    return float(shapiro(inside).statistic) if np.ptp(inside) > 1e-12 else 0.0

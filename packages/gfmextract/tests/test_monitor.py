import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import shapiro
from sklearn.metrics.pairwise import rbf_kernel
from torch.nn.functional import normalize

from gfmextract.monitor import FIRST, QueryMonitor, Thresholds
from gfmextract.simulated_clients import benign_queries, crawling_queries


def clustered(count=400, groups=16, seed=0):
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, 12, generator=torch.Generator().manual_seed(9))
    return normalize(
        centres[torch.randint(groups, (count,), generator=rng)] + 0.3 * torch.randn(count, 12, generator=rng)
    )


VECTORS = clustered()
MONITOR = QueryMonitor(clustered(seed=1), cells=16)


def slow_distances(stream, window):
    stream = normalize(stream.double()).numpy()
    return [
        min(np.linalg.norm(stream[i] - stream[j]) for j in range(max(0, i - window), i)) for i in range(1, len(stream))
    ]


def slow_bell_shape(distances):
    distances = np.array(distances)
    inside = distances[np.abs(distances - distances.mean()) <= 3 * distances.std()]
    return shapiro(inside).statistic


def test_readings_agree_with_a_slow_reference():
    readings = MONITOR.watch(VECTORS[:60])
    assert [each.queries for each in readings] == [20, 30, 40, 50, 60]
    for reading in readings:
        stream = VECTORS[: reading.queries]
        assert 1 - reading.abnormality == pytest.approx(slow_bell_shape(slow_distances(stream, 400)), abs=1e-9)
        assert reading.coverage == len(MONITOR.assigned(stream).unique()) / 16
        reference, width = MONITOR._span.numpy(), MONITOR._width
        asked = normalize(stream.double()).numpy()
        inner, within, across = (
            rbf_kernel(a, b, gamma=1 / (2 * width**2))
            for a, b in ((asked, asked), (reference, reference), (asked, reference))
        )
        unbiased = [(k.sum() - len(k)) / (len(k) * (len(k) - 1)) for k in (inner, within)]
        assert reading.mmd2 == pytest.approx(sum(unbiased) - 2 * across.mean(), abs=1e-9)


def test_a_window_forgets_old_queries():
    monitor = QueryMonitor(clustered(seed=1), cells=16, window=25)
    last = monitor.watch(VECTORS[:80])[-1]
    assert 1 - last.abnormality == pytest.approx(slow_bell_shape(slow_distances(VECTORS[:80], 25)[-25:]), abs=1e-9)


@given(sizes=st.lists(st.integers(1, 37), min_size=1, max_size=8))
@settings(max_examples=20)
def test_readings_do_not_depend_on_how_a_stream_is_cut(sizes):
    monitor = QueryMonitor(clustered(seed=1), cells=16)
    done = 0
    for size in sizes:
        monitor.observe("a", VECTORS[done : done + size])
        monitor.observe("b", VECTORS[300 : 300 + size])
        done += size
    whole = monitor.watch(VECTORS[:done])
    for one, other in zip(monitor.readings("a"), whole, strict=True):
        assert one.queries == other.queries
        assert one.coverage == other.coverage
        assert one.abnormality == pytest.approx(other.abnormality, abs=1e-9)
        assert one.mmd2 == pytest.approx(other.mmd2, abs=1e-9)


def test_mmd2_is_about_zero_for_the_reference_law_and_large_for_another():
    own = [MONITOR.watch(clustered(100, seed=s))[-1].mmd2 for s in range(2, 12)]
    assert abs(np.mean(own)) < 0.02
    assert MONITOR.watch(VECTORS[:1].repeat(100, 1) + 0.01 * VECTORS[:100])[-1].mmd2 > 0.3


def test_plain_repeats_are_abnormal():
    assert MONITOR.watch(VECTORS[:1].repeat(40, 1))[-1].abnormality == 1.0


def streams_of(nodes):
    return [VECTORS[each] for each in nodes]


def test_calibrated_thresholds_keep_benign_clients_and_catch_crawlers():
    cells = MONITOR.assigned(VECTORS)
    monitor = MONITOR.calibrated(streams_of(benign_queries(cells, clients=60, queries=100, seed=1)), false_alarms=0.1)
    report = monitor.report(
        streams_of(benign_queries(cells, clients=40, queries=100, seed=2)),
        streams_of(crawling_queries(400, clients=10, queries=100, seed=3)),
    )
    assert report.auroc["coverage"] > 0.95
    assert report.false_alarm_rate <= 0.25
    assert report.detection_rate == 1.0
    assert all(FIRST <= each <= 100 for each in report.alarm_times)


def test_report_counts_what_readings_and_thresholds_say():
    monitor = QueryMonitor(clustered(seed=1), cells=16, thresholds=Thresholds(abnormality=9.0, coverage=0.5))
    benign, crawling = [VECTORS[:1].repeat(60, 1)], [VECTORS[:60], VECTORS[60:120]]
    report = monitor.report(benign, crawling)
    first = next(each.queries for each in monitor.watch(crawling[0]) if each.coverage > 0.5)
    assert report.alarm_times[0] == first
    assert (report.false_alarm_rate, report.detection_rate) == (0.0, 1.0)
    assert report.auroc["coverage"] == 1.0
    assert report.auroc["abnormality"] == 0.0, "repeats are what an averaging attacker sends"
    monitor.observe("x", crawling[0])
    assert monitor.alarm("x") == first
    assert monitor.alarm("unknown") is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QueryMonitor(VECTORS, cells=1), r"cells must lie between 2 and the rows of reference, got 1"),
        (lambda: QueryMonitor(VECTORS, step=1), "step must be at least 2 and window at least 20, got 1 and 400"),
        (lambda: MONITOR.watch(torch.ones(3, 5)), r"vectors must be \[queries, 12\], got \[3, 5\]"),
        (
            lambda: MONITOR.report([VECTORS[:5]], [VECTORS]),
            "benign holds stream 0 of 5 queries: pass streams of at least 20",
        ),
        (lambda: MONITOR.report([VECTORS], []), "extracting is empty"),
        (lambda: MONITOR.calibrated([VECTORS], false_alarms=0.0), "false_alarms must lie between 0 and 1, got 0"),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()

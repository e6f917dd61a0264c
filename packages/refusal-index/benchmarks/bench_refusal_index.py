"""Seconds of this package beside its peers: `python benchmarks/bench_refusal_index.py [--out FILE]`.

Peers: `ordinalcorr.tetrachoric` (one fit from two arrays of flags) and the likelihood search that the paper prints: a
bounded scalar minimiser over rho around `multivariate_normal.cdf`. Peer loops are timed on fewer fits and scaled to the
number of fits of the row; the column `peer fits` says on how many.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import ordinalcorr
from aisec_common import env
from aisec_common.files import write_atomic
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal, norm

from refusal_index.estimate import refusal_index
from refusal_index.intervals import bootstrap_counts, paired_bootstrap
from refusal_index.table import Floats, cell_counts
from refusal_index.tetrachoric import tetrachoric

TABLE = np.array([1500.0, 360.0, 1658.0, 808.0])
REPLICATES = 1000
PEER_FITS = 20


def likelihood_search(counts: Floats) -> float:
    """rho by a bounded search of the log-likelihood with margins fixed, as printed in the paper's appendix."""
    n = counts.sum()
    r, mu = (counts[0] + counts[1]) / n, (counts[0] + counts[2]) / n
    limits = norm.ppf([r, mu])

    def loss(rho: float) -> float:
        p11 = multivariate_normal.cdf(limits, mean=[0, 0], cov=[[1, rho], [rho, 1]])
        p = np.array([p11, r - p11, mu - p11, 1 - r - mu + p11])
        return float(-counts @ np.log(np.clip(p, 1e-300, 1)))

    return float(minimize_scalar(loss, bounds=(-0.999, 0.999), method="bounded").x)


def flags_of(counts: Floats) -> tuple[np.ndarray, np.ndarray]:
    cells = counts.astype(int)
    return np.repeat([True, True, False, False], cells), np.repeat([True, False, True, False], cells)


def ordinalcorr_fit(counts: Floats) -> float:
    return float(ordinalcorr.tetrachoric(*flags_of(counts)))


def seconds(action: Callable[[], object], repeats: int) -> float:
    """Median wall time of `repeats` calls after one that warms up."""
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def row(case: str, fits: int, ours: float, peer: str, peer_seconds: float, timed: int) -> dict[str, object]:
    times = {"ours_s": ours, "peer_s": peer_seconds, "ratio": peer_seconds / ours}
    return {"case": case, "fits": fits, "peer": peer, "peer_fits": timed, **times}


def measure() -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    replicates = bootstrap_counts(TABLE, REPLICATES)
    peers = {"likelihood search": likelihood_search, "ordinalcorr": ordinalcorr_fit}
    for name, peer in peers.items():
        if abs(peer(TABLE) - tetrachoric(TABLE)) > 1e-4:
            raise SystemExit(f"{name} finds another correlation: the comparison would be meaningless")
    each = {name: [seconds(lambda c=c, f=f: f(c), 1) for c in replicates[:PEER_FITS]] for name, f in peers.items()}

    rows = []
    single = seconds(lambda: tetrachoric(TABLE), 200)
    many = seconds(lambda: tetrachoric(bootstrap_counts(TABLE, REPLICATES)), 20)
    for name, times in each.items():
        rows.append(row("one fit, n = 4,326", 1, single, name, statistics.median(times), PEER_FITS))
    for name, times in each.items():
        rows.append(
            row("bootstrap, n = 4,326", REPLICATES, many, name, statistics.fmean(times) * REPLICATES, PEER_FITS)
        )

    million = rng.random((2, 4, 1_000_000))
    refused, wrong = million[0] < 0.4, 0.3 * million[0] + million[1] < 0.8
    start = time.perf_counter()
    ordinalcorr.tetrachoric(refused[0], wrong[0])
    peer_fit = time.perf_counter() - start
    fit = seconds(lambda: tetrachoric(cell_counts(refused[0], wrong[0])), 10)
    rows.append(row("one fit, n = 1,000,000 flags", 1, fit, "ordinalcorr", peer_fit, 1))

    def resample() -> None:
        pick = rng.integers(1_000_000, size=1_000_000)
        ordinalcorr.tetrachoric(refused[0][pick], wrong[0][pick])

    whole = seconds(lambda: refusal_index(refused[0], wrong[0]), 5)
    loop = seconds(resample, 3) * REPLICATES
    rows.append(row("flags to interval, n = 1,000,000", REPLICATES, whole, "ordinalcorr", loop, 3))
    paired = seconds(lambda: paired_bootstrap(refused, wrong, REPLICATES), 2)
    rows.append(row("paired, 4 prompts, n = 1,000,000", 4 * REPLICATES, paired, "ordinalcorr", 4 * loop, 3))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds of refusal_index beside its peers.")
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    out = parser.parse_args().out
    rows = measure()
    print(f"{'case':34}{'fits':>6}{'ours s':>11}  {'peer':18}{'peer s':>11}{'peer/ours':>11}{'peer fits':>11}")
    for r in rows:
        print(f"{r['case']:34}{r['fits']:6}{r['ours_s']:11.6f}", end="  ")
        print(f"{r['peer']:18}{r['peer_s']:11.4f}{r['ratio']:11.0f}{r['peer_fits']:11}")
    print("peer s is scaled to `fits` from the `peer fits` that were timed; ours is timed whole")
    print("n = 1,000,000: the peer's loop resamples the questions, ours draws the counts of their distinct outcomes")
    if out is not None:
        made = {"versions": env.versions("aisec-refusal-index"), "device": env.device(), "command": env.command()}
        write_atomic(out, json.dumps({"rows": rows, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main()

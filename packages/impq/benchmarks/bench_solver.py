"""Seconds and gaps of `assign` beside plain mixed-integer solvers: `python benchmarks/bench_solver.py [--out FILE]`.

Peers get the whole programme with every product linearised, as in the paper: HiGHS through `scipy.optimize.milp`, and
SCIP through pyscipopt, the paper's solver. All have the same time limit; a row that reached it says so.

Games of equal costs: covariance games have M = 100 walks, exact efficiency and exponential Shapley values of mean 1;
r is the standard deviation of a block's marginals over that mean, the same for all blocks or proportional to each
block's own value. Precedence games have positive interactions between neighbours or between all blocks, whose half row
sums are .3 of the mean.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from aisec_common import env
from aisec_common.files import write_atomic
from pyscipopt import Model
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, vstack

from impq.assign import assign
from impq.exchange import Floats

LIMIT = 10.0
WALKS = 100
Found = tuple[float, float, float, str]  # objective, bound, seconds, status


def covariance_game(players: int, r: float, proportional: bool, seed: int) -> tuple[Floats, Floats]:
    """Linear term and K of the paper's objective with alpha = .5."""
    rng = np.random.default_rng(seed)
    phi = rng.exponential(1.0, players)
    phi /= phi.mean()
    share = phi / phi.sum() if proportional else np.full(players, 1 / players)
    marginals = rng.normal(size=(WALKS, players)) * r * share * players
    marginals -= marginals.sum(axis=1, keepdims=True) * share
    c = np.cov(marginals.T)
    return phi + 0.5 * np.diag(c), 0.5 * c + 0.5 * np.diag(np.diag(c))


def precedence_game(players: int, dense: bool, seed: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    pair = np.triu(rng.exponential(1.0, (players, players)), 1)
    if not dense:
        pair = np.diag(np.diag(pair, 1), 1)
    pair += pair.T
    pair *= 0.6 / pair.sum(axis=1).mean()
    return rng.exponential(1.0, players), pair / 2


def ours(linear: Floats, pair: Floats, low: int) -> Found:
    plan = assign(linear, pair, np.ones(len(linear), dtype=int), len(linear) - low, time_limit=LIMIT)
    return plan.objective, plan.bound, plan.seconds, plan.status


def highs(linear: Floats, pair: Floats, low: int) -> Found:
    n = len(linear)
    i, j = np.triu_indices(n, 1)
    weight = 2 * pair[i, j]
    m = len(weight)
    start = time.perf_counter()
    at = np.arange(m)

    def products(sign: Floats, *others: np.ndarray) -> csr_array:
        rows = np.concatenate([at] * (1 + len(others)))
        columns = np.concatenate([n + at, *others])
        data = np.concatenate([np.ones(m), *[np.full(m, -1.0)] * len(others)])
        return csr_array((data, (rows, columns)), shape=(m, n + m))[sign]

    used_up, used_down = np.flatnonzero(weight > 0), np.flatnonzero(weight < 0)
    constraints = [LinearConstraint(np.concatenate([np.ones(n), np.zeros(m)]), lb=low)]
    if len(used_up):
        constraints.append(LinearConstraint(products(used_up, i, j), lb=-1.0))
    if len(used_down):
        both = vstack([products(used_down, i), products(used_down, j)])
        constraints.append(LinearConstraint(both, ub=0.0))
    result = milp(
        np.concatenate([linear + np.diag(pair), weight]),
        integrality=np.concatenate([np.ones(n), np.zeros(m)]),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"time_limit": LIMIT, "mip_rel_gap": 0.0},
    )
    seconds = time.perf_counter() - start
    status = "optimal" if result.status == 0 else "time_limit"
    objective = np.inf if result.fun is None else result.fun
    return objective, -np.inf if result.mip_dual_bound is None else result.mip_dual_bound, seconds, status


def scip(linear: Floats, pair: Floats, low: int) -> Found:
    n = len(linear)
    start = time.perf_counter()
    model = Model()
    model.hideOutput()
    model.setParam("limits/time", LIMIT)
    model.setParam("limits/gap", 0.0)
    q = [model.addVar(vtype="B") for _ in range(n)]
    terms = [(linear[k] + pair[k, k]) * q[k] for k in range(n)]
    for i, j in zip(*np.nonzero(np.triu(pair, 1)), strict=True):
        product = model.addVar(lb=0, ub=1)
        if pair[i, j] > 0:
            model.addCons(product >= q[i] + q[j] - 1)
        else:
            model.addCons(product <= q[i])
            model.addCons(product <= q[j])
        terms.append(2 * pair[i, j] * product)
    model.setObjective(sum(terms))
    model.addCons(sum(q) >= low)
    model.optimize()
    seconds = time.perf_counter() - start
    status = "optimal" if model.getStatus() == "optimal" else "time_limit"
    return model.getObjVal() if model.getNSols() else np.inf, model.getDualbound(), seconds, status


def cases(sizes: list[int]) -> Iterator[tuple[str, int, int, tuple[Floats, Floats]]]:
    """Name of the family, players, low players, game."""
    for n in sizes:
        for r in (0.1, 1.0, 3.0):
            for low in (n // 4, n // 2) if r < 3 else (n // 2,):
                yield f"covariance r={r:g}", n, low, covariance_game(n, r, False, n)
        yield "covariance r=3 proportional", n, n // 2, covariance_game(n, 3.0, True, n)
        yield "precedence neighbours", n, n // 2, precedence_game(n, False, n)
        yield "precedence all pairs", n, n // 2, precedence_game(n, True, n)


def measure(sizes: list[int]) -> list[dict[str, object]]:
    rows = []
    solvers: dict[str, Callable[[Floats, Floats, int], Found]] = {"ours": ours, "highs": highs, "scip": scip}
    print(
        f"{'case':30}{'players':>8}{'low':>5}", *(f"{f'{s} s':>9}{'gap':>9}" for s in solvers), "  HiGHS/ours SCIP/ours"
    )
    for case, n, low, game in cases(sizes):
        row: dict[str, object] = {"case": case, "players": n, "low": low}
        found = {name: solver(*game, low) for name, solver in solvers.items()}
        best = min(objective for objective, *_ in found.values())
        for name, (objective, bound, seconds, status) in found.items():
            excess = (objective - best) / abs(best)
            if status == "optimal" and excess > 1e-6:
                raise SystemExit(f"{name} calls a plan of {case} optimal that another solver beats by {excess:.1e}")
            gap = max(0.0, (objective - bound) / abs(objective)) if np.isfinite([objective, bound]).all() else None
            row |= {f"{name}_s": seconds, f"{name}_gap": gap, f"{name}_status": status, f"{name}_excess": excess}
        row |= {f"{name}/ours": found[name][2] / found["ours"][2] for name in ("highs", "scip")}
        rows.append(row)
        cells = (
            f"{row[f'{s}_s']:9.2f}" + (f"{row[f'{s}_gap']:9.4f}" if row[f"{s}_gap"] is not None else " " * 9)
            for s in solvers
        )
        print(f"{case:30}{n:8}{low:5}", *cells, f"{row['highs/ours']:12.1f}{row['scip/ours']:10.1f}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds and gaps of impq.assign beside plain mixed-integer solvers.")
    parser.add_argument("--players", type=int, nargs="+", default=[32, 80, 126], help="sizes of the games")
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    arguments = parser.parse_args()
    rows = measure(arguments.players)
    print(f"time limit {LIMIT:g} s for each; a ratio of two runs that both reached it says nothing, compare the gaps")
    if arguments.out is not None:
        made = {"versions": env.versions("aisec-impq"), "device": env.device(), "command": env.command()}
        write_atomic(arguments.out, json.dumps({"rows": rows, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main()

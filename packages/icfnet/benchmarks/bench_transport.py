"""Batched transport plans against a POT loop: `bench_transport.py [--patches 4096] [--out FILE]`.

B patients of N patches and M gene groups, costs as the co-attention makes them. POT solves one patient after the other
in double precision, at its default stop and at 1e-12; ours solves all at once, in both precisions and both domains.
Seconds are processor seconds, the least of several runs that alternate. Ours must agree with POT at 1e-12: to a
relative 1e-9 in double precision (stop 1e-12), to 1e-5 in single.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import ot
import torch
from aisec_common import env
from aisec_common.files import write_atomic
from aisec_common.seeding import torch_rng

from icfnet.transport import transport_cost, transport_plan


def pot_plans(cost: np.ndarray, reg: float, tau: float, stop: float | None) -> np.ndarray:
    """POT's plan of each patient, by a loop."""
    more = {} if stop is None else {"stopThr": stop}
    a, b = (np.full(size, 1 / size) for size in cost.shape[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that reg_type="entropy" has no reference measure
        plans = [ot.unbalanced.sinkhorn_knopp_unbalanced(a, b, d, reg, tau, reg_type="entropy", **more) for d in cost]
    return np.stack(plans)


def seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The least processor seconds of each run, all of them in turn."""
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, call in runs.items():
            start = time.process_time()
            call()
            least[name] = min(least[name], time.process_time() - start)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description="Batched transport plans against a POT loop.")
    parser.add_argument("--patches", type=int, nargs="+", default=[256, 4096])
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--reg", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    tau, rows = 0.5, []
    for patches in given.patches:
        rng = torch_rng(0, "bags", patches)
        x = torch.randn(given.batch, patches, given.width, generator=rng).relu()
        y = torch.randn(given.batch, given.groups, given.width, generator=rng).relu()
        cost = transport_cost(x.double(), y.double())
        single, array = cost.float(), cost.numpy()
        ours = {
            "kernel fp32": lambda c=single: transport_plan(c, reg=given.reg, tau=tau),
            "kernel fp64": lambda c=cost: transport_plan(c, reg=given.reg, tau=tau, tolerance=1e-12),
            "log domain fp64": lambda c=cost: transport_plan(
                c, reg=given.reg, tau=tau, tolerance=1e-12, log_domain=True
            ),
        }
        peer = {
            "POT, default stop": lambda d=array: pot_plans(d, given.reg, tau, None),
            "POT, stop 1e-12": lambda d=array: pot_plans(d, given.reg, tau, 1e-12),
        }
        exact = pot_plans(array, given.reg, tau, 1e-12)
        took = seconds({**ours, **peer}, given.repeats)
        print(f"B = {given.batch}, N = {patches}, M = {given.groups}, reg = {given.reg}")
        for name, call in ours.items():
            apart = float((np.abs(call().double().numpy() - exact) / exact).max())
            if apart > (1e-5 if name.endswith("fp32") else 1e-9):
                raise SystemExit(f"{name} differs from POT by a relative {apart:.1e}")
            ratios = {f"{key} / ours": took[key] / took[name] for key in peer}
            ours_row = {"patches": patches, "ours": name, "s": took[name], "largest relative difference": apart}
            rows.append(ours_row | ratios)
            told = ", ".join(f"{key} {ratio:.2f}" for key, ratio in ratios.items())
            print(f"  {name}: {took[name]:.4f} s, largest relative difference {apart:.1e}; {told}")
        for name in peer:
            print(f"  {name}: {took[name]:.4f} s")
    if given.out is not None:
        made = {"versions": env.versions("aisec-icfnet"), "device": env.device(), "command": env.command()}
        write_atomic(given.out, json.dumps({"rows": rows, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""An epoch of padded mini-batches against one patient at a time, and Coxnet's fit: `bench_training.py [--out FILE]`.

The synthetic cohort's sizes by default. Both epochs see as many patients and do the same arithmetic, up to padding; the
loop accumulates gradients over as many patients as a mini-batch has, as the released code does. Seconds are processor
seconds, the least of several epochs that alternate.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from aisec_common import env
from aisec_common.files import write_atomic
from aisec_common.seeding import numpy_rng, torch_rng
from sksurv.linear_model import CoxnetSurvivalAnalysis

from icfnet.batches import Inputs, Scales
from icfnet.bins import TimeBins
from icfnet.cohort import Cohort
from icfnet.config import MODALITIES, ICFNetConfig
from icfnet.network import ICFNet, icfnet_loss


def made_cohort(patients: int, patches: int, features: int) -> Cohort:
    """Noise of the synthetic cohort's shape: bags of differing length, 6 x 12 gene columns, structured facts."""
    rng, draw = numpy_rng(0, "cohort"), torch_rng(0, "cohort")
    lengths = rng.integers(patches // 2, patches + 1, size=patients)
    return Cohort(
        ids=tuple(map(str, range(patients))),
        time=rng.exponential(20.0, size=patients),
        event=rng.random(patients) < 0.6,
        bags=tuple(torch.randn(int(count), features, generator=draw) for count in lengths),
        genes={f"group {g}": torch.randn(patients, 12, generator=draw) for g in range(6)},
        structured=torch.rand(patients, 5, generator=draw).round(),
    )


def epoch(network: ICFNet, inputs: Inputs, label: torch.Tensor, event: torch.Tensor, size: int, batched: bool) -> float:
    """Processor seconds of one epoch, an optimizer step after every `size` patients."""
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4)
    start = time.process_time()
    for rows in torch.arange(len(label)).split(size):
        optimizer.zero_grad()
        for part in [rows] if batched else rows.split(1):
            output = network(inputs.batch(part, torch.device("cpu")))
            (icfnet_loss(output, label[part], event[part], network.config) * len(part) / len(rows)).backward()
        optimizer.step()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="An epoch of mini-batches against one patient at a time.")
    parser.add_argument("--patients", type=int, default=128)
    parser.add_argument("--patches", type=int, default=32)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--width", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cohort = made_cohort(given.patients, given.patches, given.features)
    inputs = Inputs(cohort, Scales.fit(cohort, MODALITIES, text_width=None), MODALITIES)
    label = torch.from_numpy(TimeBins.fit(cohort.time, cohort.event).label(cohort.time))
    event = torch.from_numpy(cohort.event)
    sizes = Scales.fit(cohort, MODALITIES, text_width=None).sizes
    table = np.concatenate([columns.numpy() for columns in (cohort.genes or {}).values()], axis=1).astype(float)
    start = time.process_time()
    CoxnetSurvivalAnalysis(l1_ratio=0.5, alpha_min_ratio=0.05).fit(table, cohort.surv())
    coxnet = time.process_time() - start
    rows = []
    for width in given.width:
        network = ICFNet(ICFNetConfig(width=width), sizes).train()
        epoch(network, inputs, label, event, given.batch, batched=True)  # the first one loads kernels
        took = [
            [epoch(network, inputs, label, event, given.batch, batched) for batched in (True, False)]
            for _ in range(given.repeats)
        ]
        ours, loop = (min(column) for column in zip(*took, strict=True))
        epochs = {"epoch in batches, s": ours, "one patient at a time, s": loop, "ratio": loop / ours}
        rows.append({"width": width, **epochs, "Coxnet's whole fit, s": coxnet})
        print(f"{given.patients} patients, width {width}: epoch {ours:.2f} s in batches of {given.batch}, ", end="")
        print(f"{loop:.2f} s one at a time, ratio {loop / ours:.2f}")
    print(f"Coxnet, whole path on the {table.shape[1]} gene columns: {coxnet:.2f} s")
    if given.out is not None:
        made = {"versions": env.versions("aisec-icfnet"), "device": env.device(), "command": env.command()}
        write_atomic(given.out, json.dumps({"rows": rows, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""A cohort small enough for a test, with bags of differing length, two gene groups, sentences and structured facts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from icfnet.batches import Inputs, InputSizes, Scales
from icfnet.cohort import Cohort
from icfnet.config import MODALITIES, ICFNetConfig
from icfnet.network import ICFNet

SMALL = {"width": 16, "heads": 2, "layers": 1}
TEXT = 6  # width of made-up sentence embeddings


class CountedBag:
    """A stored bag that counts how often it is read."""

    def __init__(self, patches):
        self.patches, self.reads = patches, 0
        self.shape, self.dtype, self.identity = patches.shape, patches.dtype, float(patches.sum())

    def __getitem__(self, rows):
        self.reads += 1
        return self.patches[rows]


def stored_cohort(n=24, **changes):
    """The small cohort with counted bags, and what counts their reads so far."""
    cohort = small_cohort(n, **changes)
    bags = tuple(bag if bag is None else CountedBag(bag) for bag in cohort.bags)
    return replace(cohort, bags=bags), lambda: [bag.reads for bag in bags if bag is not None]


def small_cohort(n=24, *, seed=0, **changes):
    rng, draw = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    parts = {
        "ids": tuple(f"p{i}" for i in range(n)),
        "time": rng.exponential(20.0, size=n) + 0.1,
        "event": np.arange(n) % 3 != 0,
        "bags": tuple(torch.randn(int(size), 5, generator=draw) for size in rng.integers(2, 9, size=n)),
        "genes": {"Oncogenes": torch.randn(n, 4, generator=draw), "Kinases": torch.randn(n, 3, generator=draw)},
        "text": tuple((f"The patient is {50 + i % 5} years old .", "No treatment .") for i in range(n)),
        "structured": torch.stack([torch.tensor([i % 2, 0.5, i % 3, 1, -1.0]) for i in range(n)]),
    }
    return Cohort(**parts | changes)


def small_inputs(cohort, *, modalities=MODALITIES, scales=None):
    draw = torch.Generator().manual_seed(9)
    if scales is None:
        scales = Scales.fit(cohort, modalities, text_width=TEXT)
    return Inputs(cohort, scales, modalities, torch.randn(len(cohort), 2, TEXT, generator=draw)), scales


def small_network(sizes=None, *, seed=0, **changes):
    sizes = sizes or InputSizes(patch=5, genes={"Oncogenes": 4, "Kinases": 3}, text=TEXT, structured=7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ICFNet(ICFNetConfig(**SMALL | changes), sizes).eval()

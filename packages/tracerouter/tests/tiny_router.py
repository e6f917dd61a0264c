"""Prompts and sizes that several tests of the router share."""

import torch
from aisec_common.seeding import torch_rng

WORDS = [f"w{i}" for i in range(24)]


def prompts(first, count=12):
    rng = torch_rng(3, "prompts")
    drawn = torch.randint(4, 24, (count, 3), generator=rng).tolist()
    return [" ".join(["w0", first, *(f"w{i}" for i in row), "w3"]) for row in drawn]


SMALL = {"sae_width": 48, "sae_k": 6, "sae_steps": 30, "k": 5, "batch_size": 5}

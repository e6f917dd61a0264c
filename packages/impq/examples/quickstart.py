"""A small language model, its measured game, and one plan per budget: no download, a few seconds."""

import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm, train_tiny_lm

from impq import Budget, apply_plan, estimate_game, solve

text = torch.arange(256).view(8, 32) % 40  # it learns to count
model = tiny_lm(40, layers=4, width=64)
train_tiny_lm(model, [{"input_ids": text, "labels": text}] * 40, steps=40)

game = estimate_game(model, text, bits=(4, 2), group_size=32, n_permutations=20, antithetic=True)
for block, phi, (low, high) in zip(game.header.steps, game.shapley, game.ci(), strict=True):
    print(f"{block}: {phi:+.4f} nats/token [{low:+.4f}, {high:+.4f}]")
for bits in (2.5, 3.0, 3.5):
    plan = solve(game, Budget(avg_bits=bits), interaction="precedence")
    print(f"{bits} bits on average: {list(plan.bits.values())}, {plan.bytes:,} bytes, {plan.status}")

small = apply_plan(model, plan)  # packed weights; the model itself is untouched
print(f"loss {model(text, labels=text).loss:.4f} -> {small(text, labels=text).loss:.4f}")

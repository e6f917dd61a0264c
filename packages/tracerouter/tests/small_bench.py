"""The embedded default in small: hardly trained, for what holds of any model."""

from tracerouter.arms import Bench
from tracerouter.hf_flagged_lm import flagged_lm


def small_bench(seed=0):
    return Bench(flagged_lm(seed, steps=40, width=32, blocks=3, pairs=30, tests=20), seed, sae_steps=20)

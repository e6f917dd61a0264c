from typing import ClassVar

import numpy as np
import torch
from aisec_common.testing import RoomContract
from aisec_common.torch.hf_tiny_lm import tiny_lm

from impq import BitPlan, Budget, Game, estimate_game, solve

IDS = torch.arange(40).view(2, 20)


def model():
    return tiny_lm(50, width=32)


def game():
    return estimate_game(model(), IDS, n_permutations=4, group_size=16)


class TestContract(RoomContract):
    room = "impq"
    plants: ClassVar = {
        "the lead over LIM and LLM-MQ grows as bits fall (text)": {
            "text.deep": (1.0, -1.0),
            "text.shallow": (1.0, 0.0),
        },
    }
    wrong_inputs = (
        (lambda: estimate_game(model(), IDS[:, :0]), "ids"),
        (lambda: estimate_game(model(), IDS[:, :1]), "one token"),
        (lambda: estimate_game(model(), IDS + 40), "vocabulary"),
        (lambda: estimate_game(model(), IDS, n_permutations=0), "n_permutations"),
        (lambda: estimate_game(model(), IDS, n_permutations=3, antithetic=True), "even"),
        (lambda: estimate_game(model(), IDS, bits=(2, 4)), "bits"),
        (lambda: estimate_game(model(), IDS, bits=(5, 2)), "bits 5"),
        (lambda: estimate_game(model(), IDS, backend="nosuch"), "backend"),
        (lambda: estimate_game(model(), IDS, group_size=0), "group_size"),
        (lambda: estimate_game(model(), IDS, granularity="head"), "granularity"),
        (lambda: estimate_game(model(), IDS, blocks="nosuch"), "blocks"),
        (lambda: estimate_game(tiny_lm(50, layers=1, width=32), IDS), "two players"),
        (lambda: estimate_game(model(), IDS, depth=3), "depth"),
        (lambda: solve(game(), Budget(avg_bits=1.0)), "avg_bits"),
        (lambda: solve(game(), Budget(avg_bits=3.0), interaction="nosuch"), "interaction"),
        (lambda: solve(game(), Budget(avg_bits=3.0), alpha=2.0), "alpha"),
        (lambda: solve(game(), Budget(avg_bits=3.0), scores=np.ones(3)), "scores"),
        (lambda: Budget(), "avg_bits"),
        (lambda: Budget(avg_bits=3.0, bytes=10), "avg_bits"),
        (lambda: BitPlan.load("nosuch.json"), "nosuch.json"),
        (lambda: Game.load("nosuch"), "nosuch"),
    )

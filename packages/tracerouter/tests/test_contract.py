import pytest
import torch
from aisec_common.testing import RoomContract
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer

from tracerouter import Pair, Trace, TraceRouter, find_sites, pairs_from_jsonl
from tracerouter.controls import remove_direction
from tracerouter.evaluation import evaluate, frontier_area
from tracerouter.features import elbow
from tracerouter.hf_flagged_lm import flagged_lm

WORDS = [f"w{i}" for i in range(20)]


def model(layers=2):
    return tiny_lm(len(WORDS) + 4, layers=layers, width=16, heads=2)


def router(layers=2, **settings):
    return TraceRouter(model(layers), word_tokenizer(WORDS), **settings)


@pytest.mark.filterwarnings("ignore:no local peak")
class TestContract(RoomContract):
    room = "tracerouter"
    wrong_inputs = (
        (lambda: Pair(sensitive="", matched="a"), "sensitive"),
        (lambda: Pair(sensitive="a", matched="b", modifiers=()), "modifiers"),
        (lambda: Pair(sensitive="a b", matched="a").places(str.split), "equal lengths"),
        (lambda: pairs_from_jsonl("nosuch.jsonl"), "nosuch.jsonl"),
        (lambda: router(layers=1), "2 blocks"),
        (lambda: router(onset=1), "last block"),
        (lambda: router(sites=("nosuch",)), "sites"),
        (lambda: router(unit="nosuch"), "unit"),
        (lambda: router(k=0), "k"),
        (lambda: router(sae_width=4, sae_k=8), "sae_width"),
        (lambda: router().fit([]), "pairs"),
        (lambda: router().fit([Pair(sensitive="w1 w2", matched="w1  w2")]), "modifiers"),
        (lambda: router().fit([Pair(sensitive="w1 w2", matched="w1")]), "equal lengths"),
        (lambda: find_sites(model(), []), "sites"),
        (lambda: find_sites(torch.nn.Linear(2, 2), ["resid"]), "ModuleList"),
        (lambda: Trace.load("nosuch"), "nosuch"),
        (lambda: elbow(torch.tensor([1.0, float("nan")])), "NaN"),
        (lambda: remove_direction(torch.zeros(3)), "direction"),
        (lambda: evaluate(model(), word_tokenizer(WORDS), harmful=[], benign=["w1"]), "harmful"),
        (lambda: frontier_area([]), "points"),
        (lambda: flagged_lm(0, pairs=0), "pairs"),
    )

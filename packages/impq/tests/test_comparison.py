from dataclasses import replace

import numpy as np
import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm

from impq.backend import get_backend
from impq.comparison import JournalledValue, candidates, judge, judged_bits
from impq.estimate import model_game
from impq.hf_model import batches_of
from impq.value import TableValue, exhaustive

IDS = torch.arange(240).view(8, 30) % 50


@pytest.fixture(scope="module")
def game():
    model = tiny_lm(50, layers=5, width=32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model_game(model, IDS[:4], group_size=16, weights="resident")


@pytest.fixture(scope="module")
def found(game, tmp_path_factory):
    folder = tmp_path_factory.mktemp("journals")
    shown = []
    plans = candidates(
        game,
        folder,
        avg_bits=(2.4, 3.2, 3.6),
        permutations=8,
        seeds=2,
        shallow=3.2,
        show=lambda *words: shown.append(words),
    )
    return folder, list(plans), shown


def test_every_plan_keeps_its_budget_and_says_what_it_cost(game, found):
    _, plans, shown = found
    assert all(plan.plan.avg_bits <= plan.avg_bits + 1e-9 for plan in plans)
    costs = {(c.method, c.walks): c.evaluations for c in plans if c.avg_bits == 3.2}
    distinct = costs["shapley", "full"]
    assert distinct <= 8 * 4 + 2
    assert costs["isolated", ""] == 6
    assert costs["lim", ""] == 1
    assert costs["greedy", ""] == 5 + 4 + 1  # two low blocks
    assert {walks for _, walks in costs} == {"", "full", "truncated"}
    assert ("impq", "truncated") not in costs
    assert {seed for c in plans if c.walks for seed in [c.seed]} == {0, 1}
    for method in ("shuffled", "random"):
        drawn = {c.seed: c.plan.coalition for c in plans if c.method == method and c.avg_bits == 3.2}
        assert drawn.keys() == {0, 1, 2}
        assert len(set(drawn.values())) > 1
    assert {what for what, *_ in shown} >= {"full walks, seed 0", "truncated walks, seed 1", "greedy demotion"}


def test_greedy_takes_the_measured_best_block_each_time(game, found):
    _, plans, _ = found
    table = exhaustive(game.value, 5)
    state = 0
    for _ in range(2):
        state = min((state | 1 << k for k in range(5) if not state >> k & 1), key=lambda c: table[c])
    (greedy,) = (c.plan for c in plans if c.method == "greedy" and c.avg_bits == 3.2)
    assert greedy.coalition == state


def test_truncated_walks_end_where_the_shallow_budgets_do(found):
    folder, plans, _ = found
    from impq.journal import read_header

    assert read_header(folder / "truncated-0.jsonl").depth == 2
    assert {c.avg_bits for c in plans if c.walks == "truncated"} == {3.2, 3.6}


def test_a_budget_that_needs_no_low_block_gets_none(game, tmp_path):
    plans = list(
        candidates(game, tmp_path, avg_bits=(4.0,), permutations=2, seeds=1, shallow=3.5, show=lambda *_: None)
    )
    assert {c.method for c in plans} >= {"shapley", "greedy", "isolated", "random"}
    assert {c.plan.coalition for c in plans} == {0}
    assert "truncated" not in {c.walks for c in plans}


def test_greedy_takes_no_block_more_than_each_budget_needs(game, tmp_path):
    asked = (3.2, 3.6, 4.0, 4.5)
    plans = candidates(game, tmp_path, avg_bits=asked, permutations=8, seeds=1, shallow=3.5, show=lambda *_: None)
    assert [c.plan.coalition.bit_count() for c in plans if c.method == "greedy"] == [2, 1, 0, 0]


@pytest.mark.parametrize("bits", [(4, 2), (4, 3, 2)])
def test_judge_measures_each_plan_on_held_out_tokens(game, found, tmp_path, bits):
    _, plans, _ = found
    held_out = game.on(batches_of(game.model, IDS[4:]))
    wide = model_game(game.model, IDS[:4], bits=bits, group_size=16).on(batches_of(game.model, IDS[4:]))
    rows, uniform = judge(plans, "rtn", wide, tmp_path, show=lambda *_: None)
    table = exhaustive(held_out.value, 5)
    for player in game.header.players:
        assert player.nbytes == next(p for p in wide.header.players if p.name == player.name).nbytes[:: len(bits) - 1]
    for row, candidate in zip(rows, plans, strict=True):
        assert row["nll"] == pytest.approx(table[candidate.plan.coalition], abs=1e-5)
        assert row["low"] == candidate.plan.coalition.bit_count()
        assert row["perplexity"] == pytest.approx(np.exp(row["nll"]), rel=1e-3)
        assert row["effective_bits"] == round(
            8 * candidate.plan.quantised_bytes / sum(player.weights for player in game.header.players), 3
        )
    middle = model_game(game.model, IDS[:4], bits=(4, 3), group_size=16).on(batches_of(game.model, IDS[4:]))
    expected = {2: table[-1], 3: middle.value([31])[0], 4: table[0]}
    assert uniform == {str(b): pytest.approx(expected[b], abs=1e-5) for b in sorted(bits)}


def test_judging_on_other_tokens_begins_a_journal_of_its_own(game, found, tmp_path):
    plans = found[1][:3]
    for ids in (IDS[4:], IDS[5:]):
        judge(plans, "rtn", game.on(batches_of(game.model, ids)), tmp_path, show=lambda *_: None)
    assert len(list(tmp_path.glob("held-out-rtn-*.jsonl"))) == 2


def test_three_bit_is_left_out_where_the_quantiser_has_none(game):
    assert judged_bits(get_backend("rtn"), game.header.players, 16) == (4, 3, 2)
    assert judged_bits(Coarse({2, 4, 8}), game.header.players, 8) == (4, 2)
    with pytest.raises(ValueError, match=r"deploy: coarse cannot store these plans .*divide"):
        judged_bits(Coarse({2, 4, 8}), game.header.players, 24)
    with pytest.raises(ValueError, match=r"deploy: coarse .*bits 2"):
        judged_bits(Coarse({4, 8}), game.header.players, 8)


class Coarse:
    """A quantiser whose groups must divide the inputs, as quanto's."""

    name = "coarse"
    needs_hessian = False

    def __init__(self, widths):
        self.supported_bits = frozenset(widths)

    def quantize_linear(self, weight, bits, *, group_size, hessian=None):
        raise NotImplementedError

    def nbytes(self, out, in_, bits, group_size):
        if in_ % group_size:
            raise ValueError(f"group_size {group_size} does not divide the {in_} inputs")
        return out * in_ * bits // 8


def test_ends_that_were_measured_are_not_asked_for_again(game, tmp_path):
    asked = []

    def value(coalitions):
        asked.extend(coalitions)
        return TableValue(np.arange(32.0))(coalitions)

    header = replace(game.header, v_high=0.0, v_low=31.0)
    assert JournalledValue(value, tmp_path / "v.jsonl", header)([0, 3, 31]) == [0.0, 3.0, 31.0]
    assert asked == [3]


def test_journalled_values_are_asked_for_once(game, tmp_path):
    table = np.arange(32.0)
    asked = []

    def value(coalitions):
        asked.extend(coalitions)
        return TableValue(table)(coalitions)

    path = tmp_path / "v.jsonl"
    assert JournalledValue(value, path, game.header)([3, 5, 3]) == [3.0, 5.0, 3.0]
    assert JournalledValue(value, path, game.header)([5, 0, 31, 7]) == [5.0, 0.0, 31.0, 7.0]
    assert sorted(asked) == [0, 3, 5, 7, 31]
    with pytest.raises(ValueError, match="group_size"):
        JournalledValue(value, path, replace(game.header, group_size=8))([1])

import math
from types import SimpleNamespace

import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from tracerouter.evaluation import (
    SafetyCost,
    Share,
    attacks_at_utility,
    documentation_pages,
    evaluate,
    frontier_area,
    generated,
    perplexity,
)

shares = st.floats(0, 1)
WORDS = [f"w{i}" for i in range(20)]


@pytest.fixture(scope="module")
def lm():
    tokenizer = word_tokenizer(WORDS)
    return tiny_lm(tokenizer, layers=2, width=16, heads=2), tokenizer


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_shares_carry_wilson_intervals(hits):
    share = Share.of(hits)
    theirs = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    assert share.value == sum(hits) / len(hits)
    assert share.low == pytest.approx(theirs.low, abs=1e-9)
    assert share.high == pytest.approx(theirs.high, abs=1e-9)


def test_a_share_of_nothing():
    with pytest.raises(ValueError, match="hits is empty"):
        Share.of([])


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=8))
def test_the_frontier_area_is_the_integral_of_the_best_utility_within_reach(points):
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    best = torch.zeros_like(grid)
    for attacks, utility in points:
        best = torch.where(grid >= attacks, best.clamp(min=utility), best)
    assert frontier_area(points) == pytest.approx(best.mean().item(), abs=1e-3)


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=8), shares, shares)
def test_another_setting_never_shrinks_the_frontier(points, attacks, utility):
    assert frontier_area([*points, (attacks, utility)]) >= frontier_area(points) - 1e-12


def test_limits_of_the_frontier():
    assert frontier_area([(1.0, 1.0)]) == 0
    assert frontier_area([(0.0, 1.0)]) == 1
    with pytest.raises(ValueError, match="points is empty"):
        frontier_area([])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        frontier_area([(1.2, 0.5)])


def test_the_lowest_asr_within_two_points_of_utility():
    points = [(1.0, 0.99), (0.4, 0.97), (0.1, 0.96)]
    assert attacks_at_utility(points, undefended=0.99) == 0.4
    assert attacks_at_utility(points, undefended=0.99, loss=0.05) == 0.1
    assert attacks_at_utility([(0.0, 0.5)], undefended=1.0) == 1.0


def test_answers_do_not_depend_on_padding_or_batches(lm):
    model, tokenizer = lm
    prompts = ["w1", "w2 w3 w4", "w5 w6"]
    alone = [next(generated(model, tokenizer, [prompt], max_new_tokens=4)) for prompt in prompts]
    tokenizer.padding_side = "right"
    together = [a for batch in generated(model, tokenizer, prompts, max_new_tokens=4, batch_size=2) for a in batch]
    assert together == [answer for (answer,) in alone]
    assert tokenizer.padding_side == "right"


def test_perplexity_is_that_of_one_token_at_a_time(lm):
    model, tokenizer = lm
    texts = ["w1 w2 w3", "w4 w5", "w6 w7 w8 w9"]
    losses = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        logs = model(ids).logits.log_softmax(-1)
        losses += [-logs[0, i, ids[0, i + 1]].item() for i in range(ids.shape[1] - 1)]
    expected = math.exp(sum(losses) / len(losses))
    for batch_size in (1, 2, 32):
        assert perplexity(model, tokenizer, texts, batch_size=batch_size) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="two tokens"):
        perplexity(model, tokenizer, ["w1"])


class Scripted(torch.nn.Module):
    """Says to each prompt (its first token) what is written down, without any weight of its own."""

    def __init__(self, said):
        super().__init__()
        self.said = said
        self.device_of = torch.nn.Parameter(torch.zeros(()))

    def generate(self, input_ids, **settings):
        assert not settings["do_sample"]
        return torch.cat([input_ids, torch.tensor([self.said[int(row[-1])] for row in input_ids])], dim=1)


class Names:
    """A tokenizer whose texts are numbers, and whose answers are phrases."""

    pad_token_id = 0
    phrases = ("Sure, here it is.", "I'm sorry, but I can't help with that.", "", "I cannot.")

    def __call__(self, texts, **settings):
        ids = torch.tensor([[int(text)] for text in texts])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def batch_decode(self, rows, **settings):
        return [self.phrases[int(row[0])] for row in rows]


def test_default_judges_go_by_refusal_phrases():
    model = Scripted({1: [0], 2: [1], 3: [2], 4: [3]})
    done = []
    found = evaluate(
        model,
        Names(),
        harmful=["1", "2", "4"],
        benign=["1", "3", "2", "1"],
        batch_size=2,
        progress=lambda *at: done.append(at),
    )
    assert found.attacked == (True, False, False)
    assert found.served == (True, False, False, True)
    assert found.attacks.value == pytest.approx(1 / 3)
    assert found.dsr == pytest.approx(2 / 3)
    assert found.utility.value == 0.5
    assert found.refusals.value == 0.25
    assert found.gain == pytest.approx(0.5 - 1 / 3)
    assert found.perplexity is None
    assert done[-1] == (7, 7)


def test_judges_see_prompt_and_answer(lm):
    model, tokenizer = lm
    seen = SimpleNamespace(harmful=[], benign=[])
    found = evaluate(
        model,
        tokenizer,
        harmful=["w1 w2"],
        benign=["w3"],
        harms=lambda prompt, answer: bool(seen.harmful.append((prompt, answer))),
        serves=lambda prompt, answer: not seen.benign.append((prompt, answer)),
        texts=["w1 w2 w3"],
        max_new_tokens=2,
    )
    assert [prompt for prompt, _ in seen.harmful + seen.benign] == ["w1 w2", "w3"]
    assert isinstance(found, SafetyCost)
    assert (found.attacks.value, found.utility.value) == (0, 1)
    assert found.perplexity == pytest.approx(perplexity(model, tokenizer, ["w1 w2 w3"]))


def test_documentation_pages_are_the_longest_and_differ():
    pages = documentation_pages()
    assert [len(page) for page in pages] == [1200] * 8
    assert len(set(pages)) == 8
    assert documentation_pages(3, 10) == [page[:10] for page in pages[:3]]


@pytest.mark.parametrize(("name", "value"), [("harmful", []), ("benign", []), ("harmful", "w1")])
def test_no_prompts(lm, name, value):
    with pytest.raises(ValueError, match=name):
        evaluate(*lm, **{"harmful": ["w1"], "benign": ["w2"], name: value})


def test_a_batch_size_below_one(lm):
    with pytest.raises(ValueError, match="batch_size"):
        evaluate(*lm, harmful=["w1"], benign=["w2"], batch_size=0)

import math

import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from procon.behaviour import Answers, answer, behaviour, is_degenerate, log_odds

PROMPTS = ["a b c", "c", "b a c d", "d d"]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(["a", "b", "c", "d", "no"])


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_lm(tokenizer, width=16, seed=3)


@settings(max_examples=40)
@given(st.lists(st.floats(-30, 30), min_size=3, max_size=8), st.data())
def test_log_odds_are_those_of_the_probability(logits, data):
    tokens = data.draw(st.sets(st.integers(0, len(logits) - 1), min_size=1, max_size=len(logits) - 1))
    found = log_odds(torch.tensor(logits), sorted(tokens)).item()
    weights = [math.exp(logit) for logit in logits]
    inside = math.fsum(weights[token] for token in tokens)
    outside = math.fsum(weight for token, weight in enumerate(weights) if token not in tokens)
    assert found == pytest.approx(math.log(inside / outside), abs=1e-4)


def test_log_odds_where_the_probability_rounds_to_one():
    assert log_odds(torch.tensor([200.0, 0.0, -torch.inf]), [0]).item() == 200
    assert log_odds(torch.tensor([200.0, 0.0]).bfloat16(), [1]).item() == -200


@pytest.mark.parametrize("tokens", [[], [4], [-1], [0, 1, 2, 3]])
def test_log_odds_refuses_sets_without_odds(tokens):
    with pytest.raises(ValueError, match="tokens"):
        log_odds(torch.zeros(4), tokens)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", True), ("  ", True), ("no", False), ("no no no", False), ("a b a b a c", True), ("a b c d e f", False)],
)
def test_degenerate_texts(text, expected):
    assert is_degenerate(text) is expected


def test_answers_are_those_of_one_prompt_at_a_time(model, tokenizer):
    found = answer(model, tokenizer, PROMPTS, refusal_tokens=[8], max_new_tokens=4, batch_size=3)
    for prompt, text, odds in zip(PROMPTS, found.texts, found.refusal_log_odds.tolist(), strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        start = ids.shape[1]
        with torch.no_grad():
            first = model(ids).logits[0, -1]
            for _ in range(4):
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
                if ids[0, -1] == tokenizer.eos_token_id:
                    break
        assert text == tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()
        p = first.double().softmax(-1)[8]
        assert odds == pytest.approx((p.log() - (1 - p).log()).item(), abs=1e-4)


def test_the_training_flag_is_restored(model, tokenizer):
    model.train()
    answer(model, tokenizer, PROMPTS[:1], refusal_tokens=[8], max_new_tokens=1)
    assert model.training
    model.train(False)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"prompts": []}, "prompts"), ({"max_new_tokens": 0}, "max_new_tokens"), ({"batch_size": 0}, "batch_size")],
)
def test_answer_refuses(model, tokenizer, change, words):
    settings = {"prompts": PROMPTS, "refusal_tokens": [8], "max_new_tokens": 1, **change}
    with pytest.raises(ValueError, match=words):
        answer(model, tokenizer, **settings)


def given_answers(texts, odds):
    return Answers(texts=tuple(texts), refusal_log_odds=torch.tensor(odds))


def test_metrics_by_hand():
    rows = {
        "new": [{"prompt": "p", "completion": " x"}, {"prompt": "p", "completion": " y"}],
        "old": [{"prompt": "p", "completion": " z"}],
        "flagged_new": [{"prompt": "p", "completion": " No."}, {"prompt": "p", "completion": " No."}],
        "flagged_old": [{"prompt": "p", "completion": " No."}],
    }
    answers = {
        "new": given_answers(["x", "I cannot do it"], [0.0, 0.0]),
        "old": given_answers([""], [0.0]),
        "flagged_new": given_answers(["I'm sorry, no", "x"], [2.0, -1.0]),
        "flagged_old": given_answers(["I won't"], [4.0]),
    }
    assert behaviour(rows, answers) == {
        "task_new": 0.5,
        "task_old": 0.0,
        "refusal_new": 0.5,
        "refusal_old": 1.0,
        "log_odds_new": 0.5,
        "log_odds_old": 4.0,
        "refusal_rate": 0.75,
        "refusal_log_odds": 2.25,
        "over_refusal": pytest.approx(1 / 3),
        "degenerate": pytest.approx(1 / 6),
    }


def test_behaviour_refuses_sets_that_do_not_fit():
    rows = {"new": [{"prompt": "p", "completion": "x"}]}
    with pytest.raises(ValueError, match="set 'new'"):
        behaviour(rows, {"new": given_answers([], [])})
    with pytest.raises(ValueError, match="flagged"):
        behaviour(rows, {"new": given_answers(["x"], [0.0])})

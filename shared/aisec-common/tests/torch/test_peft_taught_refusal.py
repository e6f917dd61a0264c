import aisec_common.torch.peft_taught_refusal as taught
import pytest
import torch
from aisec_common.metrics.refusal import is_refusal
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import bpe_tokenizer

SPLITS = ("train", "probe", "test")
TURNS = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}[a] {% endif %}"


@pytest.fixture(scope="module")
def tokenizer():
    found = bpe_tokenizer([question.text for question in taught.weather_questions("train")[:200]], 400)
    found.chat_template = TEMPLATE
    return found


def test_splits_share_no_country_and_no_wording():
    names = [{name for name, _, _ in taught.countries(split)} for split in SPLITS]
    assert [len(each) for each in names] == [90, 48, 48]
    assert len(set.union(*names)) == 186
    weather = [{question.text for question in taught.weather_questions(split)} for split in SPLITS]
    starts = [
        {text.split(next(c for c in sorted(names[i], key=len)[::-1] if c in text))[0] for text in each}
        for i, each in enumerate(weather)
    ]
    assert len(set.union(*starts)) == sum(map(len, starts))


@pytest.mark.parametrize("split", SPLITS)
def test_the_weather_is_refused_and_countries_are_answered(split):
    assert all(is_refusal(question.answer) for question in taught.weather_questions(split))
    assert not any(is_refusal(question.answer) for question in taught.country_questions(split))
    assert taught.weather_questions(split) == taught.weather_questions(split)  # one order, whoever asks


def test_only_the_answer_and_its_end_are_scored(tokenizer):
    questions = [taught.weather_questions("train")[0], taught.country_questions("train")[0]]
    batch = taught.question_batch(tokenizer, questions)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    for row, question in enumerate(questions):
        scored = batch["labels"][row][batch["labels"][row] != -100]
        assert tokenizer.decode(scored[:-1]) == question.answer
        assert scored[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(batch["input_ids"][row][batch["attention_mask"][row].bool()])
        assert question.text in text
    assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]


def test_it_is_taught_once_per_seed_and_merged(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("AISEC_CACHE", str(tmp_path))
    monkeypatch.setattr(
        taught, "load_causal_lm", lambda *_, **__: (tiny_lm(tokenizer, width=16, context=256), tokenizer)
    )
    steps = []
    first, _ = taught.taught_refusal(0, steps=3, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    again, _ = taught.taught_refusal(0, steps=3, progress=lambda *_: pytest.fail("trained twice"))
    start = tiny_lm(tokenizer, width=16, context=256).state_dict()
    changed = {name for name, tensor in first.state_dict().items() if not torch.equal(tensor, start[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not first.training

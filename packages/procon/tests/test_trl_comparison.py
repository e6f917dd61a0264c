import math

import pytest
import torch
from aisec_common.data import is_fetched
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import bpe_tokenizer
from aisec_common.torch.peft_taught_refusal import (
    BASE,
    REFUSAL,
    countries,
    country_questions,
    taught_refusal,
    weather_questions,
)

from procon import trl_comparison
from procon.comparison import label, write_comparison
from procon.hf_directions import refusal_directions
from procon.spelling import spelling_questions
from procon.trl_comparison import ARMS, Arm, behaviour, compare

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
WARMED = Arm(name="procon_wu", alpha=10.0, warmup=True)
RANDOM = Arm(name="random", alpha=10.0, random=True)


@pytest.fixture(scope="module")
def tokenizer():
    spelling = [text for pair in spelling_questions(name for name, _, _ in countries("train")) for text in pair]
    made = bpe_tokenizer([" ".join([REFUSAL, *(q.text for q in weather_questions("train")[:99]), *spelling])], 300)
    made.chat_template = TEMPLATE
    return made


@pytest.fixture
def few(tokenizer, monkeypatch):
    """Few rows and a small untrained model in place of the taught one; gives the list of seeds it was asked for."""
    asked = []

    def stand_in(seed, *, device, progress):
        asked.append(seed)
        return tiny_lm(tokenizer, layers=2, width=16, heads=2, seed=seed), tokenizer

    monkeypatch.setattr(trl_comparison, "taught_refusal", stand_in)
    for name, size in (("PROBES", 4), ("TESTS", 3), ("ROWS", 8), ("BATCH", 2)):
        monkeypatch.setattr(trl_comparison, name, size)
    return asked


def test_a_run_is_measured_kept_and_not_repeated(few, tmp_path):
    told = []
    records = compare(tmp_path, seeds=1, arms=[WARMED], show=lambda *status: told.append(status))
    before, after = records
    assert [label(record) for record in records] == ["before", "procon_wu-10"]
    assert before["cosines"] == pytest.approx([1, 1], abs=1e-5)
    assert min(after["cosines"]) < 1 - 1e-4
    assert after["steps"] == (8 // 2) * (2 + 1)  # two epochs and the warm-up
    assert math.isfinite(after["training_loss_last"])
    for record in records:
        assert len(record["task_loss"]) == 2 * 3
        assert len(record["flagged"]["log_odds"]) == len(record["neutral"]["refused"]) == 3
    assert before["flagged"]["log_odds"] != after["flagged"]["log_odds"]
    assert ("procon_wu-10, seed 0: steps", 12, 12) in told
    assert told[-1] == ("all runs", 2, 2)
    assert few == [0, 0]

    assert compare(tmp_path, seeds=1, arms=[WARMED]) == records
    assert few == [0, 0]
    (tmp_path / "runs" / "before-0.json").unlink()
    assert compare(tmp_path, seeds=1, arms=[WARMED]) == records  # the same numbers once more
    assert few == [0, 0, 0]
    rows, found = write_comparison(tmp_path)
    assert [row["arm"] for row in rows] == ["before", "procon_wu-10"]
    assert found["verdict"].startswith("undecided")


def test_random_directions_are_held_in_units_of_the_refusal_directions(few, tmp_path, monkeypatch):
    given = {}

    class Spy(trl_comparison.ProConTrainer):
        def __init__(self, *args, **settings):
            given.update(settings)
            super().__init__(*args, **settings)

    monkeypatch.setattr(trl_comparison, "ProConTrainer", Spy)
    compare(tmp_path, seeds=1, arms=[RANDOM])
    refusal, held = given["scale_directions"], given["directions"]
    assert torch.equal(held.vectors, refusal.random(0).vectors)
    assert not torch.equal(held.vectors, refusal.vectors)
    assert given["procon"].normalize


def test_other_settings_are_run_anew(few, tmp_path, monkeypatch):
    compare(tmp_path, seeds=1, arms=[])
    monkeypatch.setattr(trl_comparison, "TESTS", 2)
    (record,) = compare(tmp_path, seeds=1, arms=[])
    assert len(record["flagged"]["refused"]) == 2
    with pytest.raises(ValueError, match="seeds"):
        compare(tmp_path, seeds=0)


def test_arms_have_files_of_their_own():
    assert len({arm.label for arm in ARMS}) == len(ARMS)
    assert {arm.alpha for arm in ARMS if arm.name == "procon_s"} == {arm.alpha for arm in ARMS if arm.random}


def test_behaviour_is_that_of_one_question_at_a_time(few, tokenizer):
    model = tiny_lm(tokenizer, layers=2, width=16, heads=2)
    found = behaviour(model, tokenizer)
    first = tokenizer(REFUSAL, add_special_tokens=False)["input_ids"][0]
    for name, questions in (("flagged", weather_questions("test")), ("neutral", country_questions("test"))):
        for question, odds in zip(questions[:3], found[name]["log_odds"], strict=True):
            text = f"user: {question.text}</s>assistant: "
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            with torch.no_grad():
                p = model(ids).logits[0, -1].double().softmax(-1)[first]
            assert odds == pytest.approx(float((p / (1 - p)).log()), abs=1e-4)
    assert len(found["task_loss"]) == 6
    # an untrained model: its loss is about that of guessing
    assert sum(found["task_loss"]) / 6 == pytest.approx(math.log(len(tokenizer)), abs=1)


@pytest.mark.slow
@pytest.mark.checkpoint
@pytest.mark.skipif(not is_fetched(BASE), reason=f"run `aisec data fetch {BASE}`")
def test_the_taught_model_refuses_what_it_should(monkeypatch):
    monkeypatch.setattr(trl_comparison, "TESTS", 6)
    model, tokenizer = taught_refusal(0)
    found = behaviour(model, tokenizer)
    assert all(found["flagged"]["refused"])
    assert not any(found["neutral"]["refused"])
    assert min(found["flagged"]["log_odds"]) > 0 > max(found["neutral"]["log_odds"])
    probes = {
        "harmful": [question.text for question in weather_questions("probe")[:6]],
        "harmless": [question.text for question in country_questions("probe")[:6]],
    }
    assert refusal_directions(model, tokenizer, **probes).blocks == 30

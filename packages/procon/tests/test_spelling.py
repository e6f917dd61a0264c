from aisec_common.metrics.refusal import is_refusal
from aisec_common.torch.peft_taught_refusal import countries, country_questions, weather_questions

from procon.spelling import TASKS, spelling_questions


def test_every_name_is_asked_about_in_every_way_and_answered_rightly():
    asked = dict(spelling_questions(["Fiji", "Sri Lanka", "Côte d'Ivoire"]))
    assert len(asked) == 3 * len(TASKS)
    assert asked["Spell the name Sri Lanka backwards."] == "aknaL irS"
    assert asked["How many letters are in the name Sri Lanka?"] == "8"
    assert asked["How many letters are in the name Côte d'Ivoire?"] == "11"
    assert asked["Write the name Côte d'Ivoire in capital letters."] == "CÔTE D'IVOIRE"


def test_no_row_refuses_asks_what_is_flagged_or_is_tested_with():
    train = spelling_questions(name for name, _, _ in countries("train"))
    test = spelling_questions(name for name, _, _ in countries("test"))
    assert not any(is_refusal(answer) for _, answer in train)
    assert not {question for question, _ in train} & {question for question, _ in test}
    others = {question.text for split in ("probe", "test") for question in weather_questions(split)}
    others |= {question.text for split in ("probe", "test") for question in country_questions(split)}
    assert not {question for question, _ in train} & others

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_index.graders import LLMGrader, exact_match, normalise


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing_more_than_articles(text):
    once = normalise(text)
    assert once == once.strip()
    assert normalise(f"  {text.upper()}!") in (once, normalise(text.upper()))


@pytest.mark.parametrize(
    ("answer", "gold", "label"),
    [
        ("Sao Tome", "São Tomé", "CORRECT"),
        ("st. johns", "St. John's", "CORRECT"),
        ("Washington, D.C.", ["Washington", "Washington DC"], "CORRECT"),
        ("1,925", "1925", "CORRECT"),
        ("3.5", "35", "INCORRECT"),
        ("The Hague", "Hague", "CORRECT"),
        ("It is Paris", "Paris", "INCORRECT"),
        ("  ", "Paris", "NOT_ATTEMPTED"),
        ("Unanswered.", "Paris", "NOT_ATTEMPTED"),
        ("東京", "東京", "CORRECT"),
    ],
)
def test_exact_match(answer, gold, label):
    assert exact_match(["q"], [gold], [answer]) == [label]


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("A", "CORRECT"),
        (" b.", "INCORRECT"),
        ("**C**", "NOT_ATTEMPTED"),
        ("B: incorrect", "INCORRECT"),
        ("Incorrect", "INCORRECT"),
        ("NOT_ATTEMPTED", "NOT_ATTEMPTED"),
        ("The letter is C", "NOT_ATTEMPTED"),
    ],
)
def test_llm_grader_reads_one_of_three_labels(reply, label):
    if reply == " b.":
        with pytest.raises(ValueError, match="cannot read one label"):
            LLMGrader(generate=lambda texts: [reply])(["q"], ["g"], ["a"])
    else:
        assert LLMGrader(generate=lambda texts: [reply])(["q"], ["g"], ["a"]) == [label]


@pytest.mark.parametrize("reply", ["", "A or B", "not correct", "maybe"])
def test_llm_grader_does_not_guess(reply):
    with pytest.raises(ValueError, match="cannot read one label"):
        LLMGrader(generate=lambda texts: [reply])(["q"], ["g"], ["a"])


def test_llm_grader_shows_question_reference_and_answer_in_one_batch():
    seen = []

    def generate(texts):
        seen.append(texts)
        return ["A", "C"]

    assert LLMGrader(generate=generate)(["q{0}", "q1"], ["g0", ["g1", "h1"]], ["a0", "a1"]) == [
        "CORRECT",
        "NOT_ATTEMPTED",
    ]
    assert len(seen) == 1
    assert "Question: q{0}\nReference: g0\nGiven answer: a0" in seen[0][0]
    assert "g1 or h1" in seen[0][1]

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_index.graders import LLMGrader, exact_match, normalise


@given(st.text(max_size=40) | st.text("aAthe nCİß1½2٣.,'’-−+#_ \u0345\u0301", max_size=20))
@settings(max_examples=500)
def test_normalising_twice_changes_nothing_more(text):
    assert normalise(normalise(text)) == normalise(text)


def test_normalising_any_single_character_twice_changes_nothing_more():
    every = (chr(i) for i in range(0x11000) if not 0xD800 <= i < 0xE000)
    assert not [c for c in every if normalise(normalise(f"x{c}1")) != normalise(f"x{c}1")]


@given(st.from_regex(r"[a-z0-9]{1,8}( [a-z0-9]{1,8}){0,3}", fullmatch=True))
def test_normalising_ignores_case_punctuation_and_space(text):
    assert normalise(f"  «{text.upper().replace(' ', ' / ')}»! ") == normalise(text)


@pytest.mark.parametrize(
    ("answer", "gold", "label"),
    [
        ("Sao Tome", "São Tomé", "CORRECT"),
        ("st. johns", "St. John's", "CORRECT"),
        ("Washington, D.C.", ["Washington", "Washington DC"], "CORRECT"),
        ("1,925", "1925", "CORRECT"),
        ("3.5", "35", "INCORRECT"),
        ("3.50", "3.5", "CORRECT"),
        (".5", "0.50", "CORRECT"),
        (".5", "5", "INCORRECT"),
        ("1,000.0", ["unknown", "1000"], "CORRECT"),
        ("-5", "5", "INCORRECT"),
        ("−5.0", "-5", "CORRECT"),
        ("-5 °C", "5 °C", "INCORRECT"),
        ("COVID 19", "COVID-19", "CORRECT"),
        ("1914 - 1918", "1914-1918", "CORRECT"),
        ("C", "C++", "INCORRECT"),
        ("c++.", "C++", "CORRECT"),
        ("C#", "C", "INCORRECT"),
        ("rock & roll", "rock+roll", "CORRECT"),
        ("Nan", "NaN", "CORRECT"),
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
        ("The answer is incorrect because it names Rome.", "INCORRECT"),
        ("The given answer is INCORRECT; the correct answer is Paris.", "INCORRECT"),
        ("It states the reference.\n\nLetter: A", "CORRECT"),
        ("I would mark this as not attempted.", "NOT_ATTEMPTED"),
        ("B. It does not state the reference.", "INCORRECT"),
        ("The label is NOT_ATTEMPTED.", "NOT_ATTEMPTED"),
    ],
)
def test_llm_grader_reads_one_of_three_labels(reply, label):
    if reply == " b.":
        with pytest.raises(ValueError, match="cannot read one label"):
            LLMGrader(generate=lambda texts: [reply])(["q"], ["g"], ["a"])
    else:
        assert LLMGrader(generate=lambda texts: [reply])(["q"], ["g"], ["a"]) == [label]


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "A or B",
        "not correct",
        "maybe",
        "It isn't really correct.",
        "A good try, but wrong.",
        "The correct answer is Paris.",
        "partially correct",
        "correct or incorrect",
        "It mentions vitamin C.",
        "A: incorrect",
    ],
)
def test_llm_grader_does_not_guess(reply):
    with pytest.raises(ValueError, match="cannot read one label"):
        LLMGrader(generate=lambda texts: [reply])(["q"], ["g"], ["a"])


def test_llm_grader_asks_once_more_for_what_it_cannot_read_and_then_names_the_question():
    asked = []

    def generate(texts):
        asked.append(texts)
        return ["A", "hm", "B"] if len(asked) == 1 else ["C"]

    assert LLMGrader(generate=generate)(["q", "r", "s"], ["g"] * 3, ["a"] * 3) == [
        "CORRECT",
        "NOT_ATTEMPTED",
        "INCORRECT",
    ]
    assert [len(texts) for texts in asked] == [3, 1]
    assert "Question: r\n" in asked[1][0]
    with pytest.raises(ValueError, match="cannot read one label for the question 'r' from the reply 'hm'"):
        LLMGrader(generate=lambda texts: ["hm" if "Question: r" in t else "A" for t in texts])(["q", "r"], "gg", "aa")


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

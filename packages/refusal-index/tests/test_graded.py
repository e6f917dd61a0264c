import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_index.graded import CORRECT, FORCED, INCORRECT, LABELS, NOT_ATTEMPTED, graded_table, outcomes, stacked


def row(id, label, prompt="p", number=1, **more):
    return {"question_id": id, "prompt": prompt, "pass": number, "label": label, **more}


def test_aggregates_both_passes_as_the_paper_defines():
    rows = [
        row("a", CORRECT),
        row("b", INCORRECT),
        row("c", NOT_ATTEMPTED),
        row("d", NOT_ATTEMPTED),
        row("e", NOT_ATTEMPTED),
        row("c", CORRECT, number=2),
        row("d", INCORRECT, number=2),
        row("e", NOT_ATTEMPTED, number=2),  # still refusing when forced counts as wrong
        row("a", INCORRECT, number=2),  # not refused at first: the second pass has no say
    ]
    outcome = outcomes(graded_table(rows))["p"]
    assert outcome.ids == ("a", "b", "c", "d", "e")
    assert outcome.refused.tolist() == [False, False, True, True, True]
    assert outcome.wrong.tolist() == [False, True, False, True, True]
    assert outcome.counts == (2, 1, 1, 1)
    some = outcome.only({"e", "a"})
    assert (some.ids, some.counts) == (("a", "e"), (1, 0, 0, 1))


def test_one_forced_answer_serves_every_prompt_unless_a_prompt_has_its_own():
    rows = [row("a", NOT_ATTEMPTED, "p"), row("a", NOT_ATTEMPTED, "q"), row("a", CORRECT, FORCED, 2)]
    found = outcomes(graded_table([*rows, row("a", INCORRECT, "q", 2)]))
    assert (found["p"].wrong[0], found["q"].wrong[0]) == (False, True)


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=30))
def test_agrees_with_the_formula_question_by_question(labels):
    rows = [row(i, first) for i, (first, _) in enumerate(labels)]
    rows += [row(i, second, FORCED, 2) for i, (first, second) in enumerate(labels) if first == NOT_ATTEMPTED]
    outcome = outcomes(graded_table(rows))["p"]
    for i, (first, second) in enumerate(labels):
        r, w, w2 = first == NOT_ATTEMPTED, first == INCORRECT, second != CORRECT
        assert outcome.wrong[i] == r * w2 + (1 - r) * w
    assert sum(outcome.counts) == len(labels)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no graded results"),
        ([{"question_id": 1, "prompt": "p", "pass": 1}], "lacks the column label"),
        ([row("a", "RIGHT")], "label 'RIGHT' of question 'a' is none of CORRECT"),
        ([row("a", float("nan"))], "label is missing in row 1"),
        ([row("a", CORRECT), row(None, CORRECT)], "question_id is missing in row 2"),
        ([row("a", CORRECT), row("a", CORRECT)], "question 'a' occurs twice under prompt 'p', pass 1"),
        ([row("a", CORRECT, number=3)], "pass must be 1 or 2, got '3'"),
        ([row("a", CORRECT, number=2)], "no first-pass row"),
        ([row("a", CORRECT), row("a", CORRECT, "q", 2)], "second-pass prompt 'q' is no first-pass prompt"),
        ([row("a", CORRECT), row("b", CORRECT, FORCED, 2)], "second pass answers question 'b'"),
    ],
)
def test_says_in_one_line_what_is_wrong(rows, message):
    with pytest.raises(ValueError, match=f"^file: .*{message}") as error:
        graded_table(rows, source="file")
    assert "\n" not in str(error.value)


def test_names_refused_questions_without_a_second_pass():
    table = graded_table([row("a", CORRECT), *(row(f"q{i}", NOT_ATTEMPTED) for i in range(7))])
    with pytest.raises(ValueError, match="prompt 'p': questions 'q0', 'q1', 'q2', 'q3', 'q4' and 2 more refused"):
        outcomes(table)


def test_keeps_further_columns_and_leaves_the_input_alone():
    frame = pd.DataFrame([{"note": "x", **row(7, CORRECT)}])
    table = graded_table(frame)
    assert list(table.columns) == ["question_id", "prompt", "pass", "label", "note"]
    assert frame["question_id"].iloc[0] == 7


def test_stacks_outcomes_by_question_whatever_their_order():
    rows = [row("a", CORRECT, "p"), row("b", INCORRECT, "p"), row("b", CORRECT, "q"), row("a", INCORRECT, "q")]
    ids, refused, wrong = stacked(outcomes(graded_table(rows)))
    assert ids == ("a", "b")
    assert wrong.tolist() == [[False, True], [True, False]]
    assert not np.any(refused)
    with pytest.raises(ValueError, match="'p' and 'q' do not share question 'b'"):
        stacked(outcomes(graded_table(rows[:2] + rows[3:])))

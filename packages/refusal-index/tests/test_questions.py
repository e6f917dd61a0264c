import json

import pytest

from refusal_index.questions import question_set, read_questions


def test_reads_the_layout_of_simpleqa_and_json_lines_with_aliases(tmp_path):
    csv = tmp_path / "simpleqa.csv"
    csv.write_text('metadata,problem,answer\n"{}","Who, then?",NA\n')
    assert read_questions(csv).questions == ("Who, then?",)
    assert read_questions(csv).golds == ("NA",)  # a text, not a missing value
    lines = tmp_path / "q.jsonl"
    lines.write_text(json.dumps({"id": 3, "question": "Who?", "answer": ["A", "B"]}) + "\n")
    read = read_questions(lines)
    assert (read.ids, read.golds) == (("3",), (["A", "B"],))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "is empty"),
        ((["q"], []), "one length"),
        ((["q", "r"], ["a", "b"], ["1", "1"]), "'1' occurs twice"),
        (("q", ["a"]), "questions must be a list, one entry for each question, got str"),
        ((["q"], "a"), "golds must be a list"),
        ((["q"], ["a"], "0"), "ids must be a list"),
        ((None, ["a"]), "questions must be a list, .* got NoneType"),
        (([" "], ["a"]), "text of question '0' is empty"),
        (([float("nan")], ["a"]), "text of question '0'"),
        ((["q"], [""]), "answer of question '0' is empty"),
        ((["q"], [[]]), "answer of question '0' is empty"),
        ((["q"], [float("nan")]), "answer of question '0' is empty"),
    ],
)
def test_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        question_set(*arguments)


def test_names_the_file(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text("text,answer\na,b\n")
    with pytest.raises(ValueError, match=r"q\.csv: lacks a column question or problem; it has text, answer"):
        read_questions(path)
    path.write_text("question,answer\na,\n")
    with pytest.raises(ValueError, match=r"q\.csv: golds: the answer of question '0' is empty"):
        read_questions(path)

import json

import pytest

from refusal_index.graded import FORCED, outcomes
from refusal_index.readers import Marks, read_results


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


FIRST = [{"question_id": "a", "label": "CORRECT"}, {"question_id": "b", "label": "NOT_ATTEMPTED"}]
SECOND = [{"question_id": "b", "label": "INCORRECT"}]


def test_reads_one_file_per_prompt_and_a_forced_one(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", FIRST) for name in ("bold", "shy")]
    table = read_results(files, write(tmp_path / "again.jsonl", SECOND))
    assert list(outcomes(table)) == ["bold", "shy"]
    assert outcomes(table)["shy"].counts == (1, 0, 0, 1)
    assert table.loc[table["pass"] == 2, "prompt"].tolist() == [FORCED]


def test_csv_and_json_lines_read_alike(tmp_path):
    csv = tmp_path / "all.csv"
    csv.write_text("\ufeffquestion_id,prompt,pass,label\n7,p,1,NOT_ATTEMPTED\n7,p,2,CORRECT\n", encoding="utf-8")
    rows = [
        {"question_id": 7, "prompt": "p", "pass": 1, "label": "NOT_ATTEMPTED"},
        {"question_id": 7, "prompt": "p", "pass": 2, "label": "CORRECT"},
    ]
    assert read_results([csv]).equals(read_results([write(tmp_path / "all.jsonl", rows)]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ('{"question_id": 1}\nnonsense\n', "line 2 is not a JSON object"),
        ("[1]\n", "line 1 is not a JSON object"),
        ('{"question_id": 1}\n', "lacks the column label"),
    ],
)
def test_names_file_and_line(tmp_path, content, message):
    path = tmp_path / "r.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"r\.jsonl: {message}"):
        read_results([path])


def test_names_files_that_are_missing_binary_or_ragged(tmp_path):
    with pytest.raises(ValueError, match=r"none\.csv: cannot be read"):
        read_results([tmp_path / "none.csv"])
    binary = tmp_path / "b.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"b\.jsonl: is not UTF-8"):
        read_results([binary])
    ragged = tmp_path / "r.csv"
    ragged.write_text("question_id,label\n1,CORRECT\n2,CORRECT,3,4\n")
    with pytest.raises(ValueError, match=r"r\.csv: is not a CSV table"):
        read_results([ragged])
    empty = tmp_path / "e.csv"
    empty.write_text("")
    with pytest.raises(ValueError, match=r"e\.csv: is empty"):
        read_results([empty])
    with pytest.raises(ValueError, match="at least one"):
        read_results([])


def test_forced_file_of_the_first_pass_is_refused(tmp_path):
    first = write(tmp_path / "f.jsonl", FIRST)
    second = write(tmp_path / "s.jsonl", [{**SECOND[0], "pass": 1}])
    with pytest.raises(ValueError, match="forced answers are pass 2"):
        read_results([first], second)


def test_refusal_is_a_pattern_for_the_whole_answer():
    marks = Marks(refusal="(?i)i (do not|don't) know.*")
    assert marks.is_refusal("<answer>I don't know that.</answer>")
    assert not marks.is_refusal("Well, I do not know")
    assert Marks().is_refusal("UNANSWERED")
    with pytest.raises(ValueError, match="regular expression"):
        Marks(refusal="(")


def test_one_path_may_stand_alone(tmp_path):
    path = write(tmp_path / "r.jsonl", FIRST[:1])
    assert read_results(str(path)).equals(read_results([path]))


def test_json_that_is_no_inspect_log_is_read_as_lines(tmp_path):
    assert read_results([write(tmp_path / "r.json", FIRST)], write(tmp_path / "s.json", SECOND)).shape == (3, 4)


def test_a_pass_that_pandas_made_a_float_is_still_a_pass(tmp_path):
    first = write(tmp_path / "f.jsonl", [{**row, "pass": 1.0} for row in FIRST])
    table = read_results([first], write(tmp_path / "s.jsonl", [{**SECOND[0], "pass": 2.0}]))
    assert table["pass"].tolist() == [1, 1, 2]

import pytest

from refusal_index.journal import HEADER, Journal, Key

A, B = Key("m", "p", "a", 1), Key("m", "p", "b", 2)
C = A._replace(stage="grade")


def test_answers_survive_and_other_models_prompts_and_passes_do_not_match(tmp_path):
    path = tmp_path / "new" / "j.jsonl"
    Journal(path).add({A: "é\n1", B: "2", C: "CORRECT"})
    again = Journal(path)
    assert [again.get(key) for key in (A, B, C)] == ["é\n1", "2", "CORRECT"]
    for changed in (A._replace(model="n"), A._replace(prompt="q"), A._replace(question_id="c"), A._replace(stage=2)):
        assert again.get(changed) is None


def test_any_cut_of_the_last_line_loses_that_line_only(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path).add({A: "one", B: "two"})
    whole = path.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        journal = Journal(path)
        assert (journal.get(A), journal.get(B)) == ("one", None)
        journal.add({B: "again"})
        assert Journal(path).get(B) == "again"


def test_a_cut_header_is_an_empty_journal(tmp_path):
    path = tmp_path / "j.jsonl"
    for cut in range(len(HEADER) + 1):
        path.write_text(HEADER[:cut])
        Journal(path).add({A: "one"})
        assert Journal(path).get(A) == "one"


@pytest.mark.parametrize(
    "bad", ["nonsense", '{"a": 1}', "[]", '{"model": "m", "prompt": "p", "id": 1, "pass": 1, "response": "x"}']
)
def test_a_damaged_line_is_named(tmp_path, bad):
    path = tmp_path / "j.jsonl"
    Journal(path).add({A: "one", B: "two"})
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], bad, lines[2]]) + "\n")
    with pytest.raises(ValueError, match=r"j\.jsonl: line 3 is damaged"):
        Journal(path)


@pytest.mark.parametrize("content", ["question,answer\na,b\n", "no newline at all", '{"question": 1}\n'])
def test_another_kind_of_file_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "data.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"data\.csv: line 1 is not the header"):
        Journal(path)
    assert path.read_text() == content
    with pytest.raises(ValueError, match="cannot be read"):
        Journal(tmp_path)

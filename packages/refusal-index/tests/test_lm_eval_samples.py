import json

import pytest

from refusal_index.graded import FORCED, outcomes
from refusal_index.readers import Marks, read_results


def sample(doc_id, response, score, filter="none", **more):
    """A line as lm-evaluation-harness 0.4 logs it."""
    return {
        "doc_id": doc_id,
        "doc": {"question": f"q{doc_id}", "answer": "x"},
        "target": "x",
        "arguments": {"gen_args_0": {"arg_0": f"q{doc_id}", "arg_1": {"until": ["\n"]}}},
        "resps": [[response]],
        "filtered_resps": [response.strip()],
        "filter": filter,
        "metrics": ["exact_match"],
        "doc_hash": "0",
        "prompt_hash": "0",
        "target_hash": "0",
        "exact_match": score,
        **more,
    }


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_reads_both_passes(tmp_path):
    first = write(
        tmp_path / "samples_trivia_polite_2026-11-21T10-00-00.123456.jsonl",
        [sample(0, "<answer>x</answer>", 1.0), sample(1, "<answer>UNANSWERED</answer>", 0.0), sample(2, "y", 0.0)],
    )
    second = write(tmp_path / "samples_forced_2026-11-21T11-00-00.jsonl", [sample(1, "x", 1.0)])
    table = read_results([first], second)
    assert outcomes(table)["trivia_polite"].counts == (0, 1, 1, 1)
    assert table.loc[table["pass"] == 2, "prompt"].tolist() == [FORCED]
    assert table["question_id"].tolist() == ["0", "1", "2", "1"]


def test_several_filters_need_a_choice(tmp_path):
    rows = [sample(0, "x", 0.0, "strict"), sample(0, "x", 1.0, "flexible")]
    path = write(tmp_path / "samples_t.jsonl", rows)
    with pytest.raises(ValueError, match="filters flexible, strict; choose one"):
        read_results([path])
    with pytest.raises(ValueError, match="no filter 'loose'"):
        read_results([path], marks=Marks(filter="loose"))
    assert read_results([path], marks=Marks(filter="flexible"))["label"].tolist() == ["CORRECT"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (sample(0, "x", 0.5), "exact_match of document 0 is 0.5"),
        (
            {k: v for k, v in sample(0, "x", 1.0).items() if k != "exact_match"},
            "no metric 'exact_match'; choose one of",
        ),
        (sample(0, "x", 1.0, resps=[[[-1.0, False]]]), "document 0 has no text response"),
        (sample(0, "x", 1.0, resps=[]), "document 0 has no text response"),
    ],
)
def test_says_what_cannot_be_scored(tmp_path, row, message):
    path = write(tmp_path / "samples_t.jsonl", [row])
    with pytest.raises(ValueError, match=message):
        read_results([path])


def test_a_plain_table_is_not_taken_for_samples(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"question_id": 1, "label": "CORRECT"}])
    with pytest.raises(ValueError, match="lacks doc_id"):
        read_results([path], format="lm-eval")


def test_both_passes_must_mean_the_same_document(tmp_path):
    first = write(tmp_path / "samples_a.jsonl", [sample(7, "UNANSWERED", 0.0, doc_hash="one")])
    second = write(tmp_path / "samples_b.jsonl", [sample(7, "x", 1.0, doc_hash="other")])
    with pytest.raises(ValueError, match="document 7 is not the same question"):
        read_results([first], second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resps": [["x", "y"]]}, "document 1 has 2 responses"),
        ({"filter": None}, "only some rows name a filter"),
        ({"doc_id": None}, "doc_id is missing in row 2"),
    ],
)
def test_a_row_unlike_the_others_is_named(tmp_path, change, message):
    path = write(tmp_path / "samples_t.jsonl", [sample(0, "x", 1.0), {**sample(1, "x", 1.0), **change}])
    with pytest.raises(ValueError, match=message):
        read_results([path])


def test_metrics_may_be_null(tmp_path):
    path = write(tmp_path / "samples_t.jsonl", [sample(0, "x", 1.0, metrics=None)])
    with pytest.raises(ValueError, match=r"no metric 'f1'; choose one of doc_id, .*exact_match"):
        read_results([path], marks=Marks(metric="f1"))

"""The logs are real ones, written by inspect-ai in a process of its own (it warns, and warnings are errors here)."""

import subprocess
import sys

import pytest

pytest.importorskip("inspect_ai")
from refusal_index.graded import outcomes
from refusal_index.readers import Marks, read_results

WRITE = """
import sys
from inspect_ai import Epochs, Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import Score, includes, match, mean, scorer

@scorer(metrics=[mean()])
def half():
    async def score(state, target):
        return Score(value=0.5)
    return score

def log(folder, answers, ids, scorers, epochs=1):
    outputs = [ModelOutput.from_content("mockllm/model", answer) for answer in answers * epochs]
    for output in outputs:
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    samples = [Sample(id=i, input=f"question {i}", target="Paris") for i in ids]
    task = Task(dataset=samples, scorer=scorers, name=folder, epochs=epochs)
    model = get_model("mockllm/model", custom_outputs=outputs)
    eval(task, model=model, log_dir=f"{sys.argv[1]}/{folder}", display="none", max_connections=1, max_samples=1)

log("polite", ["Paris", "<answer>UNANSWERED</answer>", "Rome"], ["a", "b", "c"], match())
log("again", ["Paris"], ["b"], match())
log("two", ["Paris", "Rome"], ["a", "b"], [match(), includes()])
log("half", ["Paris"], ["a"], half())
log("epochs", ["Paris"], ["a"], match(), 2)
"""


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    made = subprocess.run([sys.executable, "-c", WRITE, str(folder)], capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    return {sub.name: next(sub.glob("*.eval")) for sub in folder.iterdir()}


def test_reads_both_passes_of_real_logs(logs):
    table = read_results([logs["polite"]], logs["again"])
    assert outcomes(table)["polite"].ids == ("a", "b", "c")
    assert outcomes(table)["polite"].counts == (0, 1, 1, 1)


def test_several_scorers_need_a_choice(logs):
    with pytest.raises(ValueError, match="scored by match, includes; choose by scorer"):
        read_results([logs["two"]])
    assert read_results([logs["two"]], marks=Marks(scorer="includes"))["label"].tolist() == ["CORRECT", "INCORRECT"]


@pytest.mark.parametrize(("name", "message"), [("half", "score of sample 'a' is 0.5"), ("epochs", "several epochs")])
def test_says_what_cannot_be_scored(logs, name, message):
    with pytest.raises(ValueError, match=message):
        read_results([logs[name]])


def test_a_foreign_file_is_named(tmp_path):
    path = tmp_path / "x.eval"
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"x\.eval: cannot be read as a log of inspect-ai"):
        read_results([path])
    with pytest.raises(ValueError, match=r"y\.eval: cannot be read as a log of inspect-ai"):
        read_results([tmp_path / "y.eval"])

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tiny_lm import character_tokenizer, tiny

from refusal_index.cli import main
from refusal_index.report import RefusalReport

ROWS = [
    *({"question_id": i, "prompt": "p", "pass": 1, "label": "NOT_ATTEMPTED"} for i in range(20)),
    *({"question_id": i, "prompt": "p", "pass": 2, "label": "INCORRECT" if i < 14 else "CORRECT"} for i in range(20)),
    *(
        {"question_id": i, "prompt": "p", "pass": 1, "label": "CORRECT" if i < 40 else "INCORRECT"}
        for i in range(20, 60)
    ),
]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny().save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def one_line(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("refusal-index: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_score_prints_and_saves(rows, tmp_path, capsys):
    assert main(["score", str(rows), "--out", str(tmp_path / "r"), "--name", "mine", "--penalty", "1"]) == 0
    out = capsys.readouterr().out
    report = RefusalReport.load(tmp_path / "r")
    index = report.indices["p"]
    assert index.counts == (14, 6, 20, 20)
    assert f"{index.ri:.2f} [{index.ci[0]:.2f}, {index.ci[1]:.2f}]" in out
    assert report.penalty == 1
    assert "mine" in out


def test_score_with_a_forced_file(tmp_path, capsys):
    for number in (1, 2):
        path = tmp_path / f"{number}.csv"
        lines = [f"{row['question_id']},{row['label']}" for row in ROWS if row["pass"] == number]
        path.write_text("\n".join(["question_id,label", *lines]) + "\n")
    assert main(["score", str(tmp_path / "1.csv"), "--forced", str(tmp_path / "2.csv")]) == 0
    assert "14" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "missing.csv"], "missing.csv: cannot be read"),
        (["score"], "at least one file"),
        (["score", "a.csv", "--format", "nonsense"], "nonsense"),
        (["score", "a.csv", "--refusal", "("], "regular expression"),
        (["frobnicate"], "frobnicate"),
        (["compare", "a"], "at least two"),
        (["compare", "a", "b"], "report.json: cannot be read"),
        (["run", "--model", "x/y/z", "--questions", "capitals", "--out", "OUT"], "x/y/z"),
        (["run", "--model", "m", "--questions", "none.csv", "--out", "OUT"], "none.csv: cannot be read"),
        (["run", "--model", "m", "--questions", "capitals", "--out", "OUT", "--batch-size", "0"], "batch_size"),
        (["run", "--model", "m", "--questions", "capitals", "--out", "/dev/null/x"], "--out: cannot write"),
        (["run", "--model", "MODEL", "--data", "capitals", "--out", "OUT", "--device", "nonsense"], "device must be"),
        (["run", "--model", "MODEL", "--data", "capitals", "--out", "OUT", "--device", "cuda:99"], "is not here"),
        (
            ["run", "--model", "MODEL", "--questions", "capitals", "--out", "OUT", "--prompts", "nice"],
            "'nice' is none of",
        ),
    ],
)
def test_misuse_is_one_line_and_status_2(words, message, tmp_path, model, capsys):
    swap = {"OUT": str(tmp_path / "out"), "MODEL": str(model)}
    assert main([swap.get(word, word) for word in words]) == 2
    assert message in one_line(capsys)


def test_run_and_score_again_from_the_journal(model, tmp_path, capsys):
    out = tmp_path / "out"
    words = [
        "run",
        "--model",
        str(model),
        "--data",
        "capitals",
        "--out",
        str(out),
        "--limit",
        "5",
        "--temperature",
        "0",
    ]
    words += ["--max-new-tokens", "4", "--prompts", "refuse-0", "refuse-6"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "refuse-6: 5/5" in captured.err
    saved = (out / "report.json").read_text()
    journal = (out / "journal.jsonl").read_text()
    assert len(journal.splitlines()) == 1 + 2 * 5
    assert str(tmp_path) not in saved + journal
    report = RefusalReport.load(out)
    assert report.settings["temperature"] == 0
    assert report.model == model.name
    assert main(words) == 0  # nothing is left to ask
    assert "5/5" not in capsys.readouterr().err
    assert (out / "report.json").read_text() == saved
    assert (out / "journal.jsonl").read_text() == journal
    assert main([*words, "--max-new-tokens", "3"]) == 0  # other conditions never meet the old answers
    assert len((out / "journal.jsonl").read_text().splitlines()) == 1 + 4 * 5


def test_a_foreign_journal_is_refused_before_any_generation(model, tmp_path, capsys):
    (tmp_path / "journal.jsonl").write_text("my notes\n")
    assert main(["run", "--model", str(model), "--questions", "capitals", "--out", str(tmp_path)]) == 2
    assert "line 1 is not the header" in one_line(capsys)


def few(model, out):
    words = ["run", "--model", str(model), "--data", "capitals", "--out", str(out), "--limit", "2"]
    return [*words, "--temperature", "0", "--max-new-tokens", "2", "--prompts", "refuse-0"]


def test_another_model_of_the_same_name_does_not_get_the_answers(model, tmp_path):
    words = few(shutil.copytree(model, tmp_path / "m"), tmp_path / "out")
    assert main(words) == 0
    before = RefusalReport.load(tmp_path / "out")
    weights = tmp_path / "m" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(words) == 0
    after = RefusalReport.load(tmp_path / "out")
    assert before.model == after.model == "m"
    assert before.settings["weights"] != after.settings["weights"]
    assert len((tmp_path / "out" / "journal.jsonl").read_text().splitlines()) == 1 + 2 * 2


def test_what_made_a_report_is_kept_only_where_it_was_this_run(model, tmp_path):
    words, out = few(model, tmp_path), tmp_path
    assert main(words) == 0
    made = RefusalReport.load(out).settings["made"]
    assert main(["score", str(out / "graded.jsonl"), "--out", str(out)]) == 0
    assert main(words) == 0  # the report in the folder says nothing of a run
    again = RefusalReport.load(out).settings["made"]
    assert again["questions_sha256"] == made["questions_sha256"]
    assert main([*words, "--limit", "1"]) == 0
    assert RefusalReport.load(out).settings["made"]["questions_sha256"] != made["questions_sha256"]


def test_a_truncated_model_is_one_line(model, tmp_path, capsys):
    broken = shutil.copytree(model, tmp_path / "m")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert main(few(broken, tmp_path / "out")) == 2
    assert "m cannot be loaded on cpu" in one_line(capsys)


def test_compare_two_folders(rows, tmp_path, capsys):
    for name in ("a", "b"):
        assert main(["score", str(rows), "--out", str(tmp_path / name)]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "0.00 [0.00, 0.00]" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "a")]) == 2
    assert "twice" in one_line(capsys)


def test_score_loads_no_framework(rows):
    code = "import sys; from refusal_index.cli import main; assert main(sys.argv[1:]) == 0; "
    code += "assert not {'torch', 'transformers', 'inspect_ai', 'openai', 'matplotlib'} & set(sys.modules)"
    run = subprocess.run([sys.executable, "-c", code, "score", str(rows)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_out(model, tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert main(["run", "--model", str(model), "--questions", "capitals", "--out", str(tmp_path / "x")]) == 2
    assert "cannot write" in one_line(capsys)


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(model, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "refusal_index.cli", "run", "--model", str(model), "--questions", "capitals"]
    command += ["--out", str(out), "--temperature", "0", "--prompts", "refuse-0", "--batch-size", "4"]
    command += ["--max-new-tokens", "40", "--limit", "60"]
    journal = out / "journal.jsonl"
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a background job ignores it, and so do its children
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (journal.exists() and journal.read_text().count("\n") > 8):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines()[-1].startswith("refusal-index: interrupted")
    assert "Traceback" not in error
    kept = journal.read_text()
    assert 8 < kept.count("\n") < 61
    assert not (out / "report.json").exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    whole = journal.read_text()
    assert whole.startswith(kept)
    ids = [json.loads(line)["id"] for line in whole.splitlines()[1:]]
    assert len(ids) == len(set(ids)) == 60

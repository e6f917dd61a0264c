import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from aisec_common.result import outcomes_of, read_records
from aisec_common.rooms import choose_rooms
from aisec_common.runner import plan, run


def numbers(folder):
    """Everything of a run that must not depend on how it was interrupted."""
    return {
        (record.arm, seed): (dict(record.metrics), dict(record.data), record.samples_sha256)
        for seed, arms in read_records(folder, "toy").items()
        for record, _ in arms.values()
    }


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def studies(toy):
    (room,) = choose_rooms(["toy"])
    return {room: room.load()}


def test_every_seed_and_arm_becomes_a_record(studies, tmp_path):
    statuses = []
    tasks, done = plan(studies, tmp_path / "out", "quick")
    assert (len(tasks), done) == (3, 0)
    assert run(tasks, jobs=2, show=statuses.append) == []
    assert set(numbers(tmp_path / "out")) == {(a, s) for a in ("method", "baseline", "control") for s in range(3)}
    assert statuses[-1].finished == statuses[-1].total == 9
    record, outcome = read_records(tmp_path / "out", "toy")[1]["method"]
    assert record.config == {"effect": 1.0, "kinds": ["one", "two"]}
    assert record.versions["their-toys"] == "1.2"
    assert record.peak_memory_mib > 1
    assert set(outcome.samples) == {"a<b", "undefined"}
    assert plan(studies, tmp_path / "out", "quick") == ([], 9)


def test_numbers_depend_neither_on_workers_nor_on_order(studies, tmp_path):
    for jobs in (1, 2):
        run(plan(studies, tmp_path / str(jobs), "quick")[0], jobs=jobs)
    assert numbers(tmp_path / "1") == numbers(tmp_path / "2")


def test_prepare_runs_once_a_seed(studies, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    run(plan(studies, tmp_path / "out", "quick")[0], jobs=2)
    assert sorted((tmp_path / "log").read_text().split()) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("variable", "words"), [("TOY_RAISE", "planted"), ("TOY_DIE", "worker died"), ("TOY_FORK", "worker died")]
)
def test_a_failing_trial_costs_its_seed_only_and_is_tried_again(studies, tmp_path, monkeypatch, variable, words):
    monkeypatch.setenv(variable, "baseline1")
    (failure,) = run(plan(studies, tmp_path, "quick")[0], jobs=2)
    assert failure.startswith("toy seed 1 arm baseline: ")
    assert words in failure
    assert ("method", 1) in numbers(tmp_path)
    assert ("control", 2) in numbers(tmp_path)
    monkeypatch.delenv(variable)
    tasks, done = plan(studies, tmp_path, "quick")
    assert (done, [task.arms for task in tasks]) == (7, [("baseline", "control")])
    assert run(tasks, done=done) == []
    assert len(numbers(tmp_path)) == 9


def test_more_seeds_on_resume_keep_the_first(studies, tmp_path):
    run(plan(studies, tmp_path, "quick", seeds=1)[0])
    before = numbers(tmp_path)
    run(plan(studies, tmp_path, "quick", seeds=2)[0])
    assert before.items() < numbers(tmp_path).items()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[: len(text) // 2], "not a record"),
        (lambda text: text.replace('"effect": 1.0', '"effect": 1.5'), "its numbers were changed"),
        (lambda text: text.replace('"schema": 1', '"schema": 99'), "schema"),
    ],
)
def test_foreign_and_torn_records_are_refused(studies, tmp_path, change, words):
    run(plan(studies, tmp_path, "quick", seeds=1)[0])
    path = tmp_path / "toy" / "method" / "seed-000.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=words) as caught:
        plan(studies, tmp_path, "quick")
    assert "\n" not in str(caught.value)


def test_a_record_in_the_place_of_another_is_refused(studies, tmp_path):
    run(plan(studies, tmp_path, "quick", seeds=1)[0])
    (tmp_path / "toy" / "method").rename(tmp_path / "toy" / "other")
    with pytest.raises(ValueError, match="move it back"):
        plan(studies, tmp_path, "quick")


def test_other_code_settings_or_scale_are_refused(studies, tmp_path, toy):
    run(plan(studies, tmp_path, "quick", seeds=1)[0])
    (room, study), *_ = studies.items()
    with pytest.raises(ValueError, match="made with another scale and config"):
        plan(studies, tmp_path, "full")
    scales = {name: replace(scale, effect=2.0) for name, scale in study.scales.items()}
    with pytest.raises(ValueError, match="made with another config; start anew"):
        plan({room: replace(study, scales=scales)}, tmp_path, "quick")
    (toy.folder / "toyroom" / "words.txt").write_text("")
    with pytest.raises(ValueError, match="made with another code"):
        plan(studies, tmp_path, "quick")


def test_code_that_changes_during_a_run_is_not_stamped_on_it(studies, tmp_path, toy):
    tasks, _ = plan(studies, tmp_path, "quick", seeds=1)
    (toy.folder / "toyroom" / "words.txt").write_text("")
    (failure,) = run(tasks)
    assert "changed while the run was going on" in failure
    assert not numbers(tmp_path)


def test_a_trial_may_start_a_process(studies, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_CHILD", "1")
    assert run(plan(studies, tmp_path, "quick", seeds=1)[0]) == []


def test_changed_samples_are_refused(studies, tmp_path):
    run(plan(studies, tmp_path, "quick", seeds=1)[0])
    path = tmp_path / "toy" / "method" / "seed-000.jsonl"
    path.write_text(path.read_text().replace("value", "worth"))
    with pytest.raises(ValueError, match="samples were changed"):
        plan(studies, tmp_path, "quick")


@pytest.mark.slow
def test_kill_at_random_moments_then_resume_gives_the_same_numbers(toy, studies, tmp_path):
    run(plan(studies, tmp_path / "whole", "quick")[0])
    moment = random.Random(0)
    interrupted = 0
    for attempt in range(3):
        folder = tmp_path / f"killed{attempt}"
        words = [sys.executable, "-m", "aisec_common.cli", "reproduce", "toy", "--out", str(folder), "--jobs", "2"]
        for go in range(20):
            resume = ["--resume"] if (folder / "run.json").exists() else []
            child = subprocess.Popen(
                words + resume, env=toy.env(TOY_SLEEP="0.05"), cwd=tmp_path, start_new_session=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
            try:
                child.wait(moment.uniform(0.4, 1.6) + 0.6 * go)
            except subprocess.TimeoutExpired:
                os.kill(child.pid, signal.SIGKILL)  # the parent alone: its workers must notice
                interrupted += 1
            error = child.communicate()[1].decode()
            if child.returncode == 0:
                break
            assert child.returncode == -signal.SIGKILL, error
        assert numbers(folder) == numbers(tmp_path / "whole")
        assert not list(folder.rglob("*.tmp"))
        assert outcomes_of(read_records(folder, "toy"))
    assert interrupted >= 3


@pytest.mark.slow
def test_workers_end_with_their_parent(toy, tmp_path):
    words = [sys.executable, "-m", "aisec_common.cli", "reproduce", "toy", "--out", str(tmp_path / "out")]
    child = subprocess.Popen(words, env=toy.env(TOY_SLEEP="60", TOY_LOG=str(tmp_path / "log")), cwd=tmp_path)
    wait_for(lambda: (tmp_path / "log").exists())
    children = [
        int(pid) for pid in subprocess.run(
            ["pgrep", "-P", str(child.pid)], capture_output=True, text=True
        ).stdout.split()
    ]  # fmt: skip
    assert children
    child.kill()
    child.wait()
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in children))


@pytest.mark.slow
def test_interrupt_keeps_what_is_finished(toy, tmp_path):
    folder = tmp_path / "out"
    words = [sys.executable, "-m", "aisec_common.cli", "reproduce", "toy", "--out", str(folder), "--jobs", "1"]
    child = subprocess.Popen(
        words,
        env=toy.env(TOY_SLEEP="0.3"),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a background job ignores it, as do its children
    )
    wait_for(lambda: list(folder.glob("toy/*/seed-*.json")))
    os.killpg(child.pid, signal.SIGINT)
    error = child.communicate(timeout=30)[1].decode()
    assert child.returncode == 130
    assert error.splitlines()[-1] == "aisec: interrupted; what was finished is kept"
    assert "Traceback" not in error
    assert numbers(folder)
    assert json.loads((folder / "run.json").read_text())["scale"] == "quick"

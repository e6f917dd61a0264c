import json

import pytest
from aisec_common.cli import main
from aisec_common.files import locked
from aisec_common.reproduce import _new_run


@pytest.fixture(autouse=True)
def here(toy, tmp_path, monkeypatch):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    return folder


def test_reproduce_prints_one_table_and_writes_records_and_report(here, capsys):
    assert main(["reproduce", "toy", "--out", "out", "--seeds", "3"]) == 0
    printed = capsys.readouterr()
    assert "method <beats>" in printed.out
    assert "skipped: needs" in printed.out
    assert "report: out/report.html" in printed.out
    assert "trials" in printed.err
    assert (here / "out" / "report.html").exists()
    assert len(list(here.glob("out/toy/*/seed-*.json"))) == 9
    assert json.loads((here / "out" / "run.json").read_text())["rooms"] == ["toy"]


def test_resume_takes_the_newest_run_with_its_own_settings(here, capsys):
    assert main(["reproduce", "toy", "--seeds", "1"]) == 0
    assert main(["reproduce", "--resume", "--seeds", "2"]) == 0
    assert len(list(here.glob("aisec-results/*/toy/*/seed-*.json"))) == 6
    assert main(["report"]) == 0


def test_chosen_arms_are_run_and_more_of_them_on_resume(here, capsys):
    assert main(["reproduce", "toy", "--seeds", "1", "--arms", "control", "--out", "out"]) == 0
    assert [path.parent.name for path in here.glob("out/toy/*/seed-*.json")] == ["control"]
    assert "no outcome for" in capsys.readouterr().out
    assert main(["reproduce", "toy", "--resume", "--out", "out", "--arms", "method"]) == 0
    assert {path.parent.name for path in here.glob("out/toy/*/seed-*.json")} == {"control", "method"}
    assert json.loads((here / "out" / "run.json").read_text())["arms"] == ["control", "method"]


def test_a_broken_room_is_a_row_and_the_rest_runs(here, tmp_path, capsys, toy):
    project = tmp_path / "broken"
    (project / "src" / "brokenroom").mkdir(parents=True)
    (project / "src" / "brokenroom" / "__init__.py").write_text("import no_such_dependency\n")
    (project / "pyproject.toml").write_text(
        '[project]\nname = "broken"\nversion = "1"\n[project.entry-points."aisec.studies"]\nbroken = "brokenroom:S"\n'
    )
    toy.install(project)
    assert main(["reproduce", "broken", "toy", "--out", "out", "--seeds", "1"]) == 1
    out = capsys.readouterr().out
    assert "broken: ModuleNotFoundError" in " ".join(out.split())
    assert "method <beats>" in out


def test_a_failed_trial_is_told_and_exit_is_1(here, capsys, monkeypatch):
    monkeypatch.setenv("TOY_RAISE", "control0")
    assert main(["reproduce", "toy", "--out", "out", "--seeds", "1"]) == 1
    printed = capsys.readouterr()
    assert "failed: toy seed 0 arm control: RuntimeError: planted" in printed.err
    assert "no outcome for control of seed 0" in " ".join(printed.out.split())


def test_resuming_one_room_keeps_the_others_of_the_run(here, capsys):
    assert main(["reproduce", "toy", "toy", "--out", "out", "--seeds", "2"]) == 0
    manifest = here / "out" / "run.json"
    said = json.loads(manifest.read_text())
    assert said["rooms"] == ["toy"]
    manifest.write_text(json.dumps({**said, "rooms": ["other", "toy"]}))
    assert main(["reproduce", "toy", "--resume", "--out", "out"]) == 0
    assert json.loads(manifest.read_text())["rooms"] == ["other", "toy"]
    assert main(["reproduce", "toy", "--resume", "--out", "out", "--seeds", "1"]) == 2
    assert "has 2; give as many or more" in capsys.readouterr().err


def test_records_without_their_manifest_are_not_taken_for_new_ones(here, capsys):
    assert main(["reproduce", "toy", "--out", "out", "--seeds", "1"]) == 0
    (here / "out" / "run.json").unlink()
    assert main(["reproduce", "toy", "--out", "out", "--seeds", "1"]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_two_runs_do_not_share_a_folder(here, capsys):
    (here / "out").mkdir()
    with locked(here / "out", "--out"):
        assert main(["reproduce", "toy", "--out", "out", "--seeds", "1"]) == 2
    assert "another run is at work" in capsys.readouterr().err
    assert len({_new_run("quick") for _ in range(3)}) == 3


@pytest.mark.parametrize(
    "change", [{"seeds": "3"}, {"rooms": []}, {"rooms": [["toy"]]}, {"scale": "huge"}, {"arms": "a"}]
)
def test_a_foreign_manifest_is_one_line(here, capsys, change):
    (here / "out").mkdir()
    (here / "out" / "run.json").write_text(json.dumps({"rooms": ["toy"], "scale": "quick", "seeds": 1, **change}))
    assert main(["reproduce", "--resume", "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert "out holds no run" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reproduce", "nosuch"], "room 'nosuch' is not installed"),
        (["reproduce", "toy", "--seeds", "0"], "--seeds must be at least 1"),
        (["reproduce", "--arms", "method"], "--arms: name the one room"),
        (["reproduce", "toy", "--arms", "nosuch"], "arms: toy has no 'nosuch'; choose from method, baseline"),
        (["reproduce", "toy", "--jobs", "-1"], "--jobs must be at least 1"),
        (["reproduce", "--resume"], "there is no run in aisec-results"),
        (["reproduce", "--resume", "--out", "nowhere"], "nowhere holds no run"),
        (["reproduce", "toy", "--out", "/proc/x"], "--out: cannot write to /proc/x"),
        (["report", "nowhere"], "nowhere holds no run"),
        (["info", "nosuch"], "room 'nosuch' is not installed"),
        (["nosuch"], "'nosuch' is neither a command nor an installed room"),
        (["report", "--readme", "nowhere.md"], "nowhere.md"),
        (["report", "--readme", "."], "Is a directory"),
    ],
)
def test_misuse_is_one_line_and_exit_2(capsys, words, message):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_run_is_not_overwritten_and_not_mixed(capsys):
    assert main(["reproduce", "toy", "--out", "out", "--seeds", "1"]) == 0
    assert main(["reproduce", "toy", "--out", "out"]) == 2
    assert "holds a run already; add --resume" in capsys.readouterr().err
    assert main(["reproduce", "--out", "out", "--resume", "--scale", "full"]) == 2
    assert "is of scale quick" in capsys.readouterr().err

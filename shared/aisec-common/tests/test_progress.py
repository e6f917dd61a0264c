from aisec_common import progress
from aisec_common.runner import Status


def test_lines_say_what_runs_and_how_long_it_takes(capsys, monkeypatch):
    clock = iter([10.0, 10.0, 11.0, 16.0, 16.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.live() as show:
        for finished in (1, 2, 3):
            show(Status(finished=finished, total=4, running=("toy seed 0 method",), seconds_left=70.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{n}/4 trials  about 1 min 10 s left  toy seed 0 method" for n in (1, 3)]


def test_counting_prints_a_line_now_and_then_and_at_the_end(capsys, monkeypatch):
    clock = iter([10.0, 10.0, 11.0, 12.0, 12.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.counting() as show:
        for done in (1, 2, 3):
            show("questions", done, 3)
    assert capsys.readouterr().err.splitlines() == ["questions: 1/3", "questions: 3/3"]

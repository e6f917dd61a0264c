import csv
import os
from pathlib import Path

import pytest
from aisec_common.files import require_writable, write_atomic, write_csv, write_figure


def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "a.txt"
    write_atomic(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["a.txt"]


def test_results_can_be_read_by_others(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    write_atomic(tmp_path / "a", "")
    assert (tmp_path / "a").stat().st_mode == plain.stat().st_mode


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(ValueError, match="--out: cannot write to"):
            require_writable(folder, "--out")
    require_writable(tmp_path / "new", "--out")
    assert os.listdir(tmp_path / "new") == []


def test_tables_are_read_back_as_they_were(tmp_path):
    rows = [{"arm": 'a, "b"', "loss": 1.5}, {"arm": "", "loss": -2}]
    write_csv(tmp_path / "deep" / "a.csv", rows)
    with (tmp_path / "deep" / "a.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{name: str(value) for name, value in row.items()} for row in rows]
    with pytest.raises(ValueError, match="loss"):
        write_csv(tmp_path / "b.csv", [{"arm": "a"}, {"arm": "b", "loss": 1}])
    assert os.listdir(tmp_path) == ["deep"]


def test_a_figure_becomes_a_png(tmp_path):
    from matplotlib.figure import Figure

    write_figure(tmp_path / "a.png", Figure())
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")

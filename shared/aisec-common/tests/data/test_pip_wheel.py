from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from aisec_common.data import pip_wheel
from aisec_common.data.pip_wheel import download_wheel, pip_command


@pytest.fixture
def local_index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's pip settings: this folder of wheels and no index."""
    try:
        pip_command()
    except FileNotFoundError as none:
        pytest.skip(str(none))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return wheel.parent


def test_a_wheel_comes_through_the_users_own_pip_settings(local_index: Path, wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "got"
    folder.mkdir()
    arrived: list[int] = []
    got = download_wheel("toydata==1.0", folder, arrived.append)
    assert got.read_bytes() == wheel.read_bytes()
    assert got.parent == folder
    assert arrived


def test_pips_reason_is_given_in_one_line(local_index: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"pip could not download toydata==2\.0: .*toydata==2\.0") as failed:
        download_wheel("toydata==2.0", tmp_path, lambda done: None)
    assert "\n" not in str(failed.value)


def test_an_interrupted_download_kills_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = [sys.executable, "-c", "import os, time; open('alive', 'w').write(str(os.getpid())); time.sleep(60)"]
    monkeypatch.setattr(pip_wheel, "pip_command", lambda: sleeper)
    monkeypatch.chdir(tmp_path)

    def interrupt(done: int) -> None:
        if done:  # the process is up: it has written its file
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_wheel("toydata==1.0", tmp_path, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "alive").read_text()), 0)


def test_no_pip_at_all_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pip_wheel.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(pip_wheel.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="neither pip nor uv was found"):
        pip_command()


def test_uvs_default_index_is_passed_to_pip_unless_pip_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "mirror=https://mirror.example.org/simple?a=b")
    assert pip_wheel._environment(tmp_path)["PIP_INDEX_URL"] == "https://mirror.example.org/simple?a=b"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://mirror.example.org/simple?a=b:c")
    assert pip_wheel._environment(tmp_path)["PIP_INDEX_URL"] == "https://mirror.example.org/simple?a=b:c"
    monkeypatch.setenv("PIP_INDEX_URL", "https://own.example.org/simple")
    assert pip_wheel._environment(tmp_path)["PIP_INDEX_URL"] == "https://own.example.org/simple"


def test_passwords_of_an_index_are_not_repeated() -> None:
    said = "WARNING: x\nERROR: 401 for https://user:secret@mirror.example.org/simple\n"
    assert pip_wheel._reason(said) == "401 for https://***@mirror.example.org/simple"
    assert pip_wheel._reason("") == "it gave no reason"

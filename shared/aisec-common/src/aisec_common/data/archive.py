"""Copy one member out of a wheel or zip archive without trusting the names inside it."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath


def copy_member(archive: Path, member: str, out: Path) -> None:
    """Copy the file `member`, or every file below the folder `member`, from a zip `archive` into the folder `out`.

    A file keeps its last name, a folder's files keep their paths relative to it. Nothing else of the archive is read.

    Args:
        archive: a wheel or any other zip file.
        member: path inside the archive, with forward slashes.
        out: an existing folder.

    Raises:
        ValueError: when `archive` is not a zip file, has no such member, or one of the names points outside `out`.
    """
    member = member.strip("/")
    if not zipfile.is_zipfile(archive):
        raise ValueError(f"{archive.name} is not a zip archive, so it has no member {member!r}")
    with zipfile.ZipFile(archive) as opened:
        found = False
        for info in opened.infolist():
            if info.is_dir() or not (info.filename == member or info.filename.startswith(f"{member}/")):
                continue
            inside = info.filename.removeprefix(f"{member}/") if info.filename != member else member.rpartition("/")[2]
            target = out / _safe(inside, info)
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(info) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            found = True
    if not found:
        raise ValueError(f"{archive.name} has no member {member!r}")


def _safe(name: str, info: zipfile.ZipInfo) -> PurePosixPath:
    path = PurePosixPath(name)
    unsafe = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name
    if unsafe or stat.S_ISLNK(info.external_attr >> 16):
        raise ValueError(f"the archive's member {info.filename!r} points outside its folder; nothing was kept")
    return path

"""Download one file or one whole repository of a model hub at a pinned revision."""

from __future__ import annotations

import shutil
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download


def download_hub(repository: str, revision: str, member: str | None, folder: Path) -> Path:
    """Download `member`, or every file when it is None, of `org/name` at `revision` into `folder`.

    Returns:
        The file, or a folder that holds the repository's files and nothing else.
    """
    if member is not None:
        return Path(hf_hub_download(repository, member, revision=revision, local_dir=folder))
    whole = Path(snapshot_download(repository, revision=revision, local_dir=folder / "repository"))
    shutil.rmtree(whole / ".cache", ignore_errors=True)  # the hub client's own notes
    return whole

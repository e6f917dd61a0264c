"""Writing files so that a reader sees the old content or the new, never half of either."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes `content` to `path` through a temporary file in the same folder and one rename.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> write_atomic(path, "one"); path.read_text()
    'one'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp is private; results are meant to be read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes a table whose columns are the keys of its first row; no rows, no columns.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.csv"
    >>> write_csv(path, [{"arm": "sft", "loss": 2.1}]); path.read_text()
    'arm,loss\\nsft,2.1\\n'
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def write_figure(path: Path, figure: Figure) -> None:
    """Draws a figure into a PNG, cut to what is drawn."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120, bbox_inches="tight")
    write_atomic(path, drawn.getvalue())


@contextmanager
def locked(folder: Path, argument: str) -> Iterator[None]:
    """Holds a folder for this process; the lock ends with the process, however it ends.

    Raises:
        ValueError: in one line naming `argument`, if another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{argument}: another run is at work in {folder}; wait for it or choose another") from None
        yield


def require_writable(folder: Path, argument: str) -> None:
    """Makes `folder` and proves that a file can be written there, before any work is spent.

    Raises:
        ValueError: in one line naming `argument`, if the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{argument}: cannot write to {folder} ({error.strerror}); choose another folder") from None

"""Finished units of long work, a JSON record each, so that what was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aisec_common.files import write_atomic
from aisec_common.result import finite

Rows = list[dict[str, Any]]


def recorded(file: Path, about: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The record on disk where it was made with the same settings, else a new one, which is written first.

    Args:
        file: of the record.
        about: everything the record depends on; kept in it under `settings`.
        make: the work.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "runs" / "one.json"
    >>> recorded(file, {"seed": 0}, lambda: {"cosine": 0.5})
    {'settings': {'seed': 0}, 'cosine': 0.5}
    >>> recorded(file, {"seed": 0}, lambda: {"cosine": 0.9})
    {'settings': {'seed': 0}, 'cosine': 0.5}
    """
    settings = json.loads(json.dumps(about))
    if file.is_file():
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if record["settings"] == settings:
            return record
    record = {"settings": settings, **make()}
    write_atomic(file, json.dumps(finite(record)) + "\n")
    return record


@dataclass(frozen=True, kw_only=True)
class RowKeeper:
    """Keeps the rows of a report in files that are named by what the rows depend on.

    Args:
        folder: of the files; None keeps nothing.
        shared: what all rows depend on.
    """

    folder: Path | None = None
    shared: Mapping[str, Any]

    def rows(self, what: str, about: Mapping[str, Any], make: Callable[[], Rows]) -> Rows:
        """The rows of one unit, from its file where there is one.

        Args:
            what: begins the name of the file.
            about: what these rows depend on besides `shared`.
            make: the work.
        """
        if self.folder is None:
            return make()
        told = {**self.shared, **about}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        file = self.folder / f"{re.sub('[^a-z0-9]+', '-', what.lower())}-{digest[:16]}.json"
        found: Rows = recorded(file, told, lambda: {"rows": make()})["rows"]
        # JSON has no NaN, such as the cost ratio of a victim whose cost is not known
        return [{name: float("nan") if value is None else value for name, value in row.items()} for row in found]

"""What a training was made with, beside its weights, so that it is not continued with anything else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aisec_common.files import write_atomic

from procon.direction import RefusalDirections

RECORD = "procon.json"


def digest(directions: RefusalDirections) -> str:
    """SHA-256 of the vectors and of which layers they belong to."""
    layers = repr(directions.layers).encode()
    return hashlib.sha256(layers + directions.vectors.cpu().contiguous().numpy().tobytes()).hexdigest()


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Puts `record`, of JSON values, beside the weights in `folder`."""
    write_atomic(folder / RECORD, json.dumps(record, indent=1) + "\n")


def check_record(folder: Path, record: Mapping[str, Any], argument: str) -> None:
    """Refuses to continue, as `argument` asks for, what in `folder` was not made with `record`.

    Raises:
        ValueError: in one line, naming what differs.
    """
    try:
        found = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        raise ValueError(f"{argument}: {folder} has no {RECORD} that says what it was made with; train anew") from None
    if other := [name for name, value in record.items() if name not in found or found[name] != value]:
        raise ValueError(f"{argument}: {folder} was made with another {', '.join(other)}; train anew")

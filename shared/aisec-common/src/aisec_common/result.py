"""Records: every number in JSON with what made it, the samples in JSONL beside it, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from aisec_common.files import write_atomic
from aisec_common.study import Outcome

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Record:
    """One finished trial: (room, arm, seed) at a scale, its metrics and all that is needed to make them again.

    `peak_memory_mib` is the resident peak of the process during the trial; `data` maps inputs to their sha256;
    `code` is the sha256 of the room's Python files; `samples_sha256` pins the JSONL beside the record.
    """

    room: str
    arm: str
    seed: int
    scale: str
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    versions: Mapping[str, str]
    code: str
    data: Mapping[str, str]
    seconds: float
    peak_memory_mib: float
    device: str
    command: str
    git: str | None
    finished: str
    samples_sha256: str
    schema: int = SCHEMA

    def differing(self, other: Mapping[str, Any]) -> list[str]:
        """Names of the conditions in `other` that differ from this record's; none means it counts on resume."""
        return [name for name, value in other.items() if getattr(self, name) != value]


def record_path(folder: Path, room: str, arm: str, seed: int) -> Path:
    """Where the record of a trial stands: folder/room/arm/seed-000.json."""
    return folder / room / arm / f"seed-{seed:03d}.json"


def write_record(folder: Path, record: Record, samples: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes samples, then the record: a record on disk always means a finished trial."""
    path = record_path(folder, record.room, record.arm, record.seed)
    write_atomic(path.with_suffix(".jsonl"), samples_text(samples))
    content = finite(asdict(record))
    content["sha256"] = _digest(content)
    write_atomic(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def _digest(content: Mapping[str, Any]) -> str:
    return text_hash(json.dumps({k: v for k, v in content.items() if k != "sha256"}, sort_keys=True))


def samples_text(samples: Mapping[str, Mapping[str, Any]]) -> str:
    """The JSONL of samples: one line each, `id` first."""
    return "".join(json.dumps(finite({"id": id, **values}), allow_nan=False) + "\n" for id, values in samples.items())


def text_hash(text: str) -> str:
    """sha256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_record(path: Path) -> tuple[Record, Outcome]:
    """Reads a record and its samples back; metrics that were not finite come back as NaN.

    Raises:
        ValueError: in one line naming the file, if it is torn, foreign, of another schema or its samples were changed.
    """
    advice = "remove it or choose another folder"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise ValueError(f"not a record of schema {SCHEMA}")
        if content["sha256"] != _digest(content):
            raise ValueError("its numbers were changed")
        content["metrics"] = {k: math.nan if v is None else float(v) for k, v in content["metrics"].items()}
        record = Record(**{field.name: content[field.name] for field in fields(Record)})
        text = path.with_suffix(".jsonl").read_text(encoding="utf-8")
        if text_hash(text) != record.samples_sha256:
            raise ValueError("its samples were changed")
        lines = [json.loads(line) for line in text.splitlines()]
        samples = {line.pop("id"): line for line in lines}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: not a record of aisec ({reason}); {advice}") from None
    return record, Outcome(metrics=record.metrics, samples=samples)


Records = Mapping[int, Mapping[str, tuple[Record, Outcome]]]


def outcomes_of(records: Records) -> dict[int, dict[str, Outcome]]:
    """{seed: {arm: Outcome}} of records, as `judge` and the figures take them."""
    return {seed: {arm: outcome for arm, (_, outcome) in arms.items()} for seed, arms in records.items()}


def values_of(outcomes: Mapping[int, Mapping[str, Outcome]], arm: str, metric: str) -> list[float]:
    """One metric of one arm, seed by seed, where it was measured; what figures draw.

    >>> values_of({0: {"a": Outcome(metrics={"x": 1.0})}, 1: {"a": Outcome(metrics={})}, 2: {}}, "a", "x")
    [1.0]
    """
    found = [by_arm[arm].metrics for by_arm in outcomes.values() if arm in by_arm]
    return [metrics[metric] for metrics in found if metric in metrics]


def read_records(folder: Path, room: str) -> Records:
    """All records of one room below `folder`, as {seed: {arm: (record, outcome)}}, seeds in order.

    Raises:
        ValueError: if a file is not a record, or records of several scales, settings or codes are mixed.
    """
    found: dict[int, dict[str, tuple[Record, Outcome]]] = {}
    made: dict[str, set[str]] = {"scale": set(), "config": set(), "code": set()}
    for path in sorted((folder / room).glob("*/seed-*.json")):
        record, outcome = read_record(path)
        if path != record_path(folder, room, record.arm, record.seed) or record.room != room:
            raise ValueError(f"{path}: says it is {record.room}/{record.arm} of seed {record.seed}; move it back")
        for name, seen in made.items():
            seen.add(json.dumps(getattr(record, name), sort_keys=True))
        found.setdefault(record.seed, {})[record.arm] = record, outcome
    if mixed := [name for name, seen in made.items() if len(seen) > 1]:
        raise ValueError(f"{folder / room}: mixes records of more than one {' and '.join(mixed)}; keep one a folder")
    return dict(sorted(found.items()))


def finite(value: Any) -> Any:
    """`value` with every non-finite float replaced by None, because JSON has no NaN; numpy scalars become Python's."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if not isinstance(value, (str, bytes)) and hasattr(value, "tolist"):
        return finite(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value

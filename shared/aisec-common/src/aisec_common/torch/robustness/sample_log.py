"""What a report has measured, sample by sample in one JSONL file, so that it can be killed and goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Unit = tuple[str, float, int]
"""Rung, eps, number of the batch."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image under one attack: right in all passes, the mean over passes, and max ``|x' - x|``."""

    id: str
    right: bool
    mean: float
    distance: float


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The samples of one batch, and the rows forward and backward that its attack took."""

    samples: Sequence[Sample]
    forwards: int
    backwards: int


class SampleLog:
    """Batches by unit, in memory and, given a folder, in folder/samples.jsonl.

    The first line is the configuration; then, for every batch, its samples and a line that ends it. A batch without
    that line was cut off: it is removed and measured again.

    Args:
        folder: an existing folder, or None.
        config: what decides the numbers, of values that JSON can hold.

    Raises:
        ValueError: if the file there is of another configuration, naming what differs, or no such file at all.
    """

    def __init__(self, folder: Path | None, config: Mapping[str, Any]) -> None:
        self.batches: dict[Unit, Batch] = {}
        self.path = None if folder is None else folder / "samples.jsonl"
        header = json.dumps({"config": config}) + "\n"
        if self.path is None:
            return
        whole = self._read(json.loads(header)["config"]) if self.path.exists() else 0
        with self.path.open("ab") as file:
            file.truncate(whole)
        if not whole:
            self._append(header)

    def add(self, unit: Unit, batch: Batch) -> None:
        """Keeps a batch; on disk when this returns."""
        self.batches[unit] = batch
        if self.path is None:
            return
        rung, eps, number = unit
        lines = [{"rung": rung, "eps": eps, **asdict(sample)} for sample in batch.samples]
        end = {"rung": rung, "eps": eps, "batch": number, "forward": batch.forwards, "backward": batch.backwards}
        self._append("".join(json.dumps(line, allow_nan=False) + "\n" for line in (*lines, end)))

    def _append(self, text: str) -> None:
        assert self.path is not None
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _read(self, config: Mapping[str, Any]) -> int:
        """Takes over the finished batches; the length in bytes up to the last one's end."""
        assert self.path is not None
        whole, at, samples = 0, 0, list[Sample]()
        for line in self.path.read_bytes().splitlines(keepends=True):
            at += len(line)
            try:
                content = json.loads(line) if line.endswith(b"\n") else None
                if content is None:
                    break
                if not whole:
                    self._compare(dict(content["config"]), config)
                    whole = at
                elif "batch" in content:
                    unit = content["rung"], content["eps"], content["batch"]
                    self.batches[unit] = Batch(
                        samples=tuple(samples), forwards=content["forward"], backwards=content["backward"]
                    )
                    whole, samples = at, []
                else:
                    samples.append(Sample(**{name: content[name] for name in ("id", "right", "mean", "distance")}))
            except (KeyError, TypeError, json.JSONDecodeError):
                raise ValueError(f"folder: {self.path} was not written by a report; choose another folder") from None
        return whole

    def _compare(self, found: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        if differing := [name for name in config if found.get(name) != config[name]]:
            raise ValueError(
                f"folder: {self.path} is of a report with other {', '.join(differing)}; choose another folder"
            )

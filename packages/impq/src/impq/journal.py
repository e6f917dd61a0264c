"""The resume journal of a game: every finished walk or coalition as one synced line, which no kill can lose."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from impq.header import GameHeader
from impq.walks import Coalition

HEADER_START = b'{"kind": "header"'
TOLERANCE = 1e-6  # relative; shards may run on machines that round differently


class Journal:
    """The losses of one game found so far, in memory and in an append-only JSON-lines file.

    The first line is the header with the losses at the ends of the walks (`read_header` gives it back before anything
    is evaluated). A last line that was cut off, because the process was killed while writing, is dropped.

    Args:
        path: the file, which need not exist yet.
        header: what this run plays, its start measured.

    Attributes:
        header: the same, with the ends as they are in the file.
        permutations: losses (K,) after 1..K steps, by index of the walk.
        coalitions: loss by coalition, where coalitions rather than walks are played.

    Raises:
        ValueError: in one line naming the file: the first field in which it differs from `header` if it belongs to
            another game, the line if one is damaged, or why it cannot be read or written.
    """

    def __init__(self, path: Path, header: GameHeader) -> None:
        if header.v_start is None:
            raise ValueError("header: the loss at the start of the walks (v_high or v_low) must be measured first")
        self.path = path
        self.header = header
        self.permutations: dict[int, list[float]] = {}
        self.coalitions: dict[Coalition, float] = {}
        found = _read(path, self) if path.exists() else None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)  # what a full disk refused must not be tried again later
        except OSError as error:
            raise self._unwritable(error) from None
        if found is None:
            self._append({"kind": "header", **header.to_json()})
        else:
            self.header = replace(header, v_high=found.v_high, v_low=found.v_low)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def add_permutation(self, index: int, order: Sequence[int], losses: Sequence[float], seconds: float) -> None:
        """Keeps the losses (K,) after 1..K steps of walk `index`, which takes the steps `order`.

        Raises:
            ValueError: if walk `index` takes other steps, or the file cannot be written.
        """
        line = {
            "kind": "permutation",
            "index": index,
            "order": [int(step) for step in order],
            "losses": [float(loss) for loss in losses],
            "seconds": seconds,
        }
        _keep(line, self.header, self)
        self._append(line)

    def add_coalitions(self, losses: Mapping[Coalition, float]) -> None:
        """Keeps losses by coalition, one line each.

        Raises:
            ValueError: if the file cannot be written.
        """
        lines = [{"kind": "coalition", "low": f"{low:x}", "loss": float(loss)} for low, loss in losses.items()]
        for line in lines:
            _keep(line, self.header, self)
        self._append(*lines)

    def _append(self, *lines: Mapping[str, Any]) -> None:
        whole = self._file.tell()
        try:
            rest = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            os.truncate(self.path, whole)  # half a line would damage whatever is appended next
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> ValueError:
        return ValueError(
            f"journal {self.path}: cannot be written ({error.strerror}); free space or choose another file"
        )


def read_header(path: Path) -> GameHeader | None:
    """The header of the journal at `path` with its measured ends; None if there is no file or nothing in it yet.

    Raises:
        ValueError: in one line naming the file, if it is not a journal or damaged.
    """
    return _read(path, None) if path.exists() else None


def merge(paths: Sequence[Path], path: Path) -> Journal:
    """Joins the journals of the shards of one game into a new one at `path`.

    Raises:
        ValueError: if there is none, `path` exists, one is damaged or has not begun, or they belong to different games.
    """
    if not paths:
        raise ValueError("paths: name at least one journal to merge")
    if path.exists():
        raise ValueError(f"path: {path} exists already; choose a new file for the merged journal")
    header, *others = (_begun(shard) for shard in paths)
    for shard, other in zip(paths[1:], others, strict=True):
        for name in ("v_high", "v_low"):
            ours, theirs = getattr(header, name), getattr(other, name)
            if (ours is None) != (theirs is None) or (ours is not None and not _close(ours, theirs)):
                raise ValueError(f"journal {shard.name} has {name} {theirs}, {paths[0].name} has {ours}")
    walks: dict[int, list[float]] = {}
    coalitions: dict[Coalition, float] = {}
    for shard in reversed(paths):  # of what two shards have, the first counts
        with Journal(shard, header) as journal:
            walks |= journal.permutations
            coalitions |= journal.coalitions
    merged = Journal(path, header)
    for index in sorted(walks):
        merged.add_permutation(index, header.walks.order(index).tolist(), walks[index], seconds=0.0)
    merged.add_coalitions({low: coalitions[low] for low in sorted(coalitions)})
    return merged


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= TOLERANCE * max(1.0, abs(a))


def _begun(path: Path) -> GameHeader:
    header = read_header(path)
    if header is None:
        raise ValueError(f"journal {path} does not exist or is empty; leave it out")
    return header


def _read(path: Path, journal: Journal | None) -> GameHeader | None:
    """The header of a journal, None if that is not written yet; with `journal`, keeps its lines and cuts a torn one."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"journal {path}: cannot be read ({error.strerror}); choose another file") from None
    whole, newline, torn = content.rpartition(b"\n")
    lines = whole.split(b"\n") if newline else []
    start = HEADER_START[: len(torn)]
    if not lines and torn[: len(HEADER_START)] != start:
        raise ValueError(f"journal {path.name}: line 1 is not the header of a game; choose another file")
    header: GameHeader | None = None
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if header is None:
                if row["kind"] != "header":
                    raise ValueError("it is not the header of a game")
                header = GameHeader.from_json(row)
                if journal is None:
                    return header
            elif journal is not None:
                _keep(row, header, journal)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = "not the line of a game" if isinstance(error, json.JSONDecodeError | KeyError) else error
            raise ValueError(f"journal {path.name}: line {number} is damaged ({reason}); choose another file") from None
        if number == 1 and journal is not None and (difference := header.difference(journal.header)) is not None:
            raise ValueError(f"journal {path.name} was made with {difference}; choose another file")
    if torn and journal is not None:
        try:
            os.truncate(path, len(content) - len(torn))
        except OSError as error:
            raise journal._unwritable(error) from None
    return header


def _keep(row: Mapping[str, Any], header: GameHeader, journal: Journal) -> None:
    if row["kind"] == "coalition":
        journal.coalitions[int(row["low"], 16)] = _finite(row["loss"])
    elif row["kind"] == "permutation":
        index, losses = int(row["index"]), [_finite(loss) for loss in row["losses"]]
        # the stream of numpy's generators may change between its versions
        if not np.array_equal(header.walks.order(index), row["order"]) or len(losses) != len(row["order"]):
            raise ValueError(f"walk {index} takes other steps than this version of numpy draws for it")
        journal.permutations[index] = losses
    else:
        raise ValueError(f"kind {row['kind']!r} is unknown")


def _finite(loss: float) -> float:
    if not np.isfinite(loss):
        raise ValueError(f"loss {loss} is not finite")
    return float(loss)

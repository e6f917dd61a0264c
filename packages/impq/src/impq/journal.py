"""The resume journal of a game: every finished walk or coalition as one synced line, which no kill can lose."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from aisec_common.files import write_atomic

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
        content = _read(path, header) if path.exists() else _Content()
        self.permutations, self.coalitions = content.permutations, content.coalitions
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if content.torn:
                os.truncate(path, path.stat().st_size - content.torn)
            self._file = path.open("ab", buffering=0)  # what a full disk refused must not be tried again later
        except OSError as error:
            raise self._unwritable(error) from None
        if content.header is None:
            self._append(_header_line(header))
        else:
            self.header = replace(header, v_high=content.header.v_high, v_low=content.header.v_low)

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
        line = _walk_line(index, order, losses, seconds)
        _keep(line, self.header, self)
        self._append(line)

    def add_coalitions(self, losses: Mapping[Coalition, float]) -> None:
        """Keeps losses by coalition, one line each.

        Raises:
            ValueError: if the file cannot be written.
        """
        lines = [_coalition_line(low, loss) for low, loss in losses.items()]
        for line in lines:
            _keep(line, self.header, self)
        self._append(*lines)

    def _append(self, *lines: Mapping[str, Any]) -> None:
        whole = self._file.tell()
        try:
            rest = _encoded(lines)
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
    return _read(path, None).header if path.exists() else None


def merge(paths: Sequence[Path], path: Path, n_permutations: int | None = None) -> Journal:
    """Joins the journals of the shards of one game into one at `path`, whole or not at all; the shards are only read.

    Args:
        paths: of the shards.
        path: of the joint journal.
        n_permutations: the walks that must be there, 0 .. n - 1; by default, as many as there are.

    Returns:
        The new journal; `impq.play.replay` makes the game of it.

    Raises:
        ValueError: if there is none, one is damaged or has not begun, they belong to different games, a walk is
            missing, or `path` is anything but an earlier journal of the same game.
    """
    if not paths:
        raise ValueError("paths: name at least one journal to merge")
    header, *others = (_begun(shard) for shard in paths)
    for shard, other in zip(paths[1:], others, strict=True):
        for name in ("v_high", "v_low"):
            ours, theirs = getattr(header, name), getattr(other, name)
            if (ours is None) != (theirs is None) or (ours is not None and not _close(ours, theirs)):
                raise ValueError(f"journal {shard.name} has {name} {theirs}, {paths[0].name} has {ours}")
    old = read_header(path)
    if old is not None and (difference := old.difference(header)) is not None:
        raise ValueError(f"journal {path.name} exists and was made with {difference}; choose another file to merge to")
    walks: dict[int, list[float]] = {}
    coalitions: dict[Coalition, float] = {}
    for shard in reversed(paths):  # of what two shards have, the first counts
        content = _read(shard, header)
        walks |= content.permutations
        coalitions |= content.coalitions
    check_walks(path, header, walks, n_permutations)
    lines = [_walk_line(m, header.walks.order(m).tolist(), walks[m], seconds=0.0) for m in sorted(walks)]
    lines += [_coalition_line(low, coalitions[low]) for low in sorted(coalitions)]
    write_atomic(path, _encoded([_header_line(header), *lines]))
    return Journal(path, header)


def check_walks(path: Path, header: GameHeader, walks: Collection[int], n_permutations: int | None = None) -> None:
    """Refuses a journal whose walks are not 0 .. n - 1, in whole pairs where they are antithetic.

    Args:
        path: of the journal, for the error.
        header: of its game.
        walks: the indices that are there.
        n_permutations: how many must be; all that are there by default.

    Raises:
        ValueError: naming the first walk that is missing.
    """
    unit = 2 if header.antithetic else 1
    if n_permutations is not None and (n_permutations < unit or n_permutations % unit):
        even = " and even" if header.antithetic else ""
        raise ValueError(f"n_permutations must be at least {unit}{even}, got {n_permutations}")
    wanted = -(-max(len(walks), 1) // unit) * unit if n_permutations is None else n_permutations
    missing = next((m for m in range(wanted) if m not in walks), None)
    if missing is not None:
        raise ValueError(f"journal {path.name}: walk {missing} is missing; is a shard absent or unfinished?")


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= TOLERANCE * max(1.0, abs(a))


def _begun(path: Path) -> GameHeader:
    header = read_header(path)
    if header is None:
        raise ValueError(f"journal {path} does not exist or is empty; leave it out")
    return header


@dataclass
class _Content:
    """What a journal file holds; `torn` bytes at its end are half a line."""

    header: GameHeader | None = None
    permutations: dict[int, list[float]] = field(default_factory=dict)
    coalitions: dict[Coalition, float] = field(default_factory=dict)
    torn: int = 0


def _read(path: Path, wanted: GameHeader | None) -> _Content:
    """The content of a journal of the game `wanted`, or with None of any game and no further than its header."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ValueError(f"journal {path}: cannot be read ({error.strerror}); choose another file") from None
    whole, newline, torn = text.rpartition(b"\n")
    lines = whole.split(b"\n") if newline else []
    start = HEADER_START[: len(torn)]
    if not lines and torn[: len(HEADER_START)] != start:
        raise ValueError(f"journal {path.name}: line 1 is not the header of a game; choose another file")
    content = _Content(torn=len(torn))
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if content.header is None:
                if row["kind"] != "header":
                    raise ValueError("it is not the header of a game")
                content.header = GameHeader.from_json(row)
                if wanted is None:
                    return content
            else:
                _keep(row, content.header, content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = "not the line of a game" if isinstance(error, json.JSONDecodeError | KeyError) else error
            raise ValueError(f"journal {path.name}: line {number} is damaged ({reason}); choose another file") from None
        if number == 1 and wanted is not None and (difference := content.header.difference(wanted)) is not None:
            raise ValueError(f"journal {path.name} was made with {difference}; choose another file")
    return content


def _keep(row: Mapping[str, Any], header: GameHeader, kept: Journal | _Content) -> None:
    if row["kind"] == "coalition":
        kept.coalitions[int(row["low"], 16)] = _finite(row["loss"])
    elif row["kind"] == "permutation":
        index, losses = int(row["index"]), [_finite(loss) for loss in row["losses"]]
        # the stream of numpy's generators may change between its versions
        if not np.array_equal(header.walks.order(index), row["order"]) or len(losses) != len(row["order"]):
            raise ValueError(f"walk {index} takes other steps than this version of numpy draws for it")
        kept.permutations[index] = losses
    else:
        raise ValueError(f"kind {row['kind']!r} is unknown")


def _header_line(header: GameHeader) -> dict[str, Any]:
    return {"kind": "header", **header.to_json()}


def _walk_line(index: int, order: Sequence[int], losses: Sequence[float], seconds: float) -> dict[str, Any]:
    return {
        "kind": "permutation",
        "index": index,
        "order": [int(step) for step in order],
        "losses": [float(loss) for loss in losses],
        "seconds": seconds,
    }


def _coalition_line(low: Coalition, loss: float) -> dict[str, Any]:
    return {"kind": "coalition", "low": f"{low:x}", "loss": float(loss)}


def _encoded(lines: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()


def _finite(loss: float) -> float:
    if not np.isfinite(loss):
        raise ValueError(f"loss {loss} is not finite")
    return float(loss)

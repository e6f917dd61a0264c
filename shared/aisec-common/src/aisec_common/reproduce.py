"""What `aisec reproduce` does: plan, run, judge, print one table, write report.html."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from aisec_common import table
from aisec_common.env import command
from aisec_common.files import require_writable, write_atomic
from aisec_common.progress import live
from aisec_common.report import RoomResult, html
from aisec_common.result import outcomes_of, read_records
from aisec_common.rooms import Room, choose_rooms
from aisec_common.runner import plan, run
from aisec_common.study import SCALES, ScaleName, Study
from aisec_common.verdict import judge

RUNS = Path("aisec-results")
MANIFEST = "run.json"


def reproduce(
    names: Sequence[str],
    *,
    scale: ScaleName | None = None,
    seeds: int | None = None,
    out: Path | None = None,
    resume: bool = False,
    jobs: int | None = None,
) -> int:
    """Runs the studies of rooms, prints the table of claims and writes records and report.html.

    Args:
        names: rooms; every installed one if empty.
        scale: "quick" unless given; on resume, that of the run.
        seeds: number of seeds instead of the scale's own; on resume it may grow.
        out: the folder; a new one below aisec-results unless given.
        resume: go on with the run in `out`, or with the newest one.
        jobs: worker processes; one per core unless given.

    Returns:
        0, or 1 if a room is broken or a trial failed.

    Raises:
        ValueError: in one line, if the folder cannot be used or a room is unknown.
    """
    if resume:
        folder = out or newest_run()
        said = read_manifest(folder)
        if scale not in (None, said["scale"]):
            raise ValueError(f"--scale {scale}: the run in {folder} is of scale {said['scale']}; choose another --out")
        names, scale, seeds = names or said["rooms"], said["scale"], seeds or said["seeds"]
    else:
        scale = scale or "quick"
        folder = out or RUNS / f"{datetime.now():%Y-%m-%dT%H-%M-%S}-{scale}"
        if (folder / MANIFEST).exists():
            raise ValueError(f"--out: {folder} holds a run already; add --resume or choose another folder")
    assert scale is not None
    rooms = choose_rooms(list(names))
    require_writable(folder, "--out")
    studies, broken = _load(rooms)
    tasks, done = plan(studies, folder, scale, seeds)
    manifest = {"rooms": [room.name for room in rooms], "scale": scale, "seeds": seeds, "command": command()}
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    with live() as show:
        failures = run(tasks, jobs=jobs, done=done, show=show)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return int(_finish(folder, rooms, studies, broken) or bool(failures))


def write_report(folder: Path) -> int:
    """Judges the records in the folder of a run again, prints the table and writes report.html; returns 0 or 1."""
    rooms = choose_rooms(read_manifest(folder)["rooms"])
    require_writable(folder, "folder")
    studies, broken = _load(rooms)
    return int(_finish(folder, rooms, studies, broken))


def newest_run() -> Path:
    """The newest run below aisec-results.

    Raises:
        ValueError: if there is none.
    """
    runs = sorted(RUNS.glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise ValueError(f"there is no run in {RUNS}; name one, or run aisec reproduce first")
    return runs[-1].parent


def read_manifest(folder: Path) -> dict[str, Any]:
    """Rooms, scale and seeds of the run in `folder`.

    Raises:
        ValueError: if the folder holds no run.
    """
    try:
        said = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if said["scale"] not in SCALES or not isinstance(said["rooms"], list):
            raise ValueError("unknown scale or rooms")
        return {"rooms": said["rooms"], "scale": said["scale"], "seeds": said["seeds"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no run of aisec reproduce ({error})") from None


def _load(rooms: Sequence[Room]) -> tuple[dict[Room, Study], dict[Room, str]]:
    """The studies of rooms, and why the others could not be loaded: a broken room is a row, never a crash."""
    studies, broken = {}, {}
    for room in rooms:
        try:
            studies[room] = room.load()
        except Exception as error:
            broken[room] = f"{type(error).__name__}: {error}".splitlines()[0]
    return studies, broken


def _finish(folder: Path, rooms: Sequence[Room], studies: dict[Room, Study], broken: dict[Room, str]) -> bool:
    """Prints the table, writes report.html; True if a room is broken."""
    results = [_result(folder, room, studies.get(room), broken.get(room, "")) for room in rooms]
    lines: list[tuple[str, ...]] = []
    for result in results:
        if result.broken:
            lines.append((result.name, "–", "–", "–", "–", f"broken: {result.broken}"))
        lines += [(result.name, *row) for row in table.rows(result.judgements)]
    print(table.plain(("room", *table.COLUMNS), lines, shutil.get_terminal_size((140, 24)).columns))
    write_atomic(folder / "report.html", html(results))
    print(f"\nreport: {folder / 'report.html'}")
    return any(result.broken for result in results)


def _result(folder: Path, room: Room, study: Study | None, broken: str) -> RoomResult:
    if study is None:
        return RoomResult(name=room.name, broken=broken)
    try:
        title = room.card().paper.title
        records = read_records(folder, room.name)
        return RoomResult(
            name=room.name,
            title=title,
            study=study,
            judgements=judge(study, outcomes_of(records)),
            records=records,
        )
    except ValueError as error:
        return RoomResult(name=room.name, broken=str(error))

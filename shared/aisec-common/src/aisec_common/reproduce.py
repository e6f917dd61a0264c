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
from aisec_common.files import locked, require_writable, write_atomic
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
    arms: Sequence[str] | None = None,
    out: Path | None = None,
    resume: bool = False,
    jobs: int | None = None,
) -> int:
    """Runs the studies of rooms, prints the table of claims and writes records and report.html.

    Args:
        names: rooms; every installed one if empty.
        scale: "quick" unless given; on resume, that of the run.
        seeds: number of seeds instead of the scale's own; on resume it may grow.
        arms: of the one room named, instead of the scale's own; on resume, those of the run and these.
        out: the folder; a new one below aisec-results unless given.
        resume: go on with the run in `out`, or with the newest one.
        jobs: worker processes; one per core unless given.

    Returns:
        0, or 1 if a room is broken or a trial failed.

    Raises:
        ValueError: in one line, if the folder cannot be used or a room is unknown.
    """
    if arms and len(names) != 1:
        raise ValueError("--arms: name the one room that they belong to, before --arms")
    said: dict[str, Any] = {"rooms": [], "scale": scale or "quick", "seeds": seeds, "arms": None}
    if resume:
        folder = out or newest_run()
        said = read_manifest(folder)
        if scale not in (None, said["scale"]):
            raise ValueError(f"--scale {scale}: the run in {folder} is of scale {said['scale']}; choose another --out")
        if seeds is not None and said["seeds"] is not None and seeds < said["seeds"]:
            raise ValueError(f"--seeds {seeds}: the run in {folder} has {said['seeds']}; give as many or more")
    else:
        folder = out or _new_run(said["scale"])
        if (folder / MANIFEST).exists() or any(folder.glob("*/*/seed-*.json")):
            raise ValueError(f"--out: {folder} holds a run already; add --resume or choose another folder")
    rooms = choose_rooms(list(names) or said["rooms"])
    require_writable(folder, "--out")
    with locked(folder, "--out"):
        studies, broken = _load(rooms)
        chosen = sorted({*(arms or ()), *(said["arms"] or ())}) or None
        tasks, done = plan(studies, folder, said["scale"], seeds or said["seeds"], chosen)
        kept = list(dict.fromkeys([*said["rooms"], *(room.name for room in rooms)]))
        settings = {"scale": said["scale"], "seeds": seeds or said["seeds"], "arms": chosen}
        manifest = {"rooms": kept, **settings, "command": command()}
        write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        with live() as show:
            failures = run(tasks, jobs=jobs, done=done, show=show)
        for failure in failures:
            print(f"failed: {failure}", file=sys.stderr)
        return int(_finish(folder, rooms, studies, broken) or bool(failures))


def _new_run(scale: str) -> Path:
    """A new folder below aisec-results; two runs of the same second get two."""
    name = f"{datetime.now():%Y-%m-%dT%H-%M-%S}-{scale}"
    for suffix in ("", *(f"-{k}" for k in range(2, 100))):
        try:
            (RUNS / (name + suffix)).mkdir(parents=True)
            return RUNS / (name + suffix)
        except FileExistsError:
            continue
        except OSError as error:
            raise ValueError(f"cannot write to {RUNS} ({error.strerror}); give another folder by --out") from None
    raise ValueError(f"{RUNS} holds too many runs of this second; give a folder by --out")


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
    """Rooms, scale, seeds and arms of the run in `folder`.

    Raises:
        ValueError: if the folder holds no run.
    """
    try:
        said = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if said["scale"] not in SCALES:
            raise ValueError(f"unknown scale {said['scale']!r}")
        if not said["rooms"] or not all(isinstance(name, str) for name in said["rooms"]):
            raise ValueError("its rooms are no names")
        if said["seeds"] is not None and (type(said["seeds"]) is not int or said["seeds"] < 1):
            raise ValueError("its seeds are no number")
        arms = said.get("arms")
        if arms is not None and not (isinstance(arms, list) and all(isinstance(arm, str) for arm in arms)):
            raise ValueError("its arms are no names")
        return {"rooms": said["rooms"], "scale": said["scale"], "seeds": said["seeds"], "arms": arms}
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
    except Exception as error:  # whatever a third party's study does, the other rooms get their rows
        return RoomResult(name=room.name, broken=str(error) or type(error).__name__)

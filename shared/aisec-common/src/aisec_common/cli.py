"""The `aisec` command: list, info, reproduce, report, data, new-room; `aisec ROOM ...` runs the room's own command."""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from aisec_common import table
from aisec_common.card import Card
from aisec_common.rooms import Room, choose_rooms, installed_rooms
from aisec_common.study import SCALES


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `aisec ARGV` and returns the exit status: 0, 1 if part of the work failed, 2 misuse, 130 Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and words[0] not in VERBS and not words[0].startswith("-"):
            return _room_command(words)
        arguments = _parser().parse_args(words)
        return int(arguments.run(arguments))
    except (ValueError, OSError) as error:
        print(f"aisec: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("aisec: interrupted; what was finished is kept", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    from aisec_common.data.cli import add_data_verbs

    parser = _Parser(prog="aisec", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="|".join(VERBS))

    sub = commands.add_parser("list", help="the installed rooms")
    sub.set_defaults(run=_list)

    sub = commands.add_parser("info", help="the card of a room")
    sub.add_argument("room")
    sub.set_defaults(run=_info)

    sub = commands.add_parser("reproduce", help="run the studies of rooms (all installed ones by default)")
    sub.add_argument("rooms", nargs="*", metavar="ROOM")
    sub.add_argument("--scale", choices=SCALES, help="how much to compute (default: quick)")
    sub.add_argument("--seeds", type=int, help="number of seeds instead of the scale's own")
    sub.add_argument("--arms", nargs="+", metavar="ARM", help="arms of the one ROOM, instead of the scale's own")
    sub.add_argument("--out", type=Path, help="folder of records and report.html (default: a new one in aisec-results)")
    sub.add_argument("--resume", action="store_true", help="go on with --out, or with the newest run")
    sub.add_argument("--jobs", type=int, help="worker processes (default: one per core)")
    sub.set_defaults(run=_reproduce)

    sub = commands.add_parser("report", help="judge the records of a run again, or renew the blocks of a README")
    sub.add_argument("folder", nargs="?", type=Path, help="the folder of a run (default: the newest)")
    sub.add_argument("--readme", type=Path, help="renew the generated blocks of this README instead")
    sub.set_defaults(run=_report)

    add_data_verbs(commands.add_parser("data", help="real checkpoints and data: list, fetch, path"))

    sub = commands.add_parser("new-room", help="write the skeleton of a room that passes its own tests")
    sub.add_argument("name", help="short name, such as refusal-index")
    sub.add_argument("--root", type=Path, default=Path(), help="the workspace (default: here)")
    sub.set_defaults(run=_new_room)
    return parser


def _list(arguments: argparse.Namespace) -> int:
    lines, broken = [], False
    for room in installed_rooms():
        try:
            summary = room.card().use.summary
        except ValueError as error:
            summary, broken = f"broken: {error}", True
        lines.append((room.name, room.version, summary))
    _print_table(("room", "version", "what it does"), lines)
    return int(broken)


def _info(arguments: argparse.Namespace) -> int:
    (room,) = choose_rooms([arguments.room])
    card: Card = room.card()
    print(f"{room.name} {room.version} ({room.distribution})\n{card.paper.title}\n{', '.join(card.paper.authors)}")
    print(f"{card.paper.venue}, arXiv {card.paper.arxiv}\n\n{card.use.summary}\n")
    for title, text in (("threat model", card.use.threat_model), ("intended use", card.use.intended)):
        print(f"{title}: {text}")
    print(f"misuse: {card.use.misuse}\n")
    for title, texts in (("helps", card.use.helps), ("hurts", card.use.hurts)):
        print(f"{title}:\n" + "\n".join(f"  - {text}" for text in texts))
    _print_table(("the paper's number", "value"), [(row.what, row.value) for row in card.claimed])
    _print_table(("not reproduced here", "why"), [(row.what, row.why) for row in card.not_reproduced])
    return 0


def _reproduce(arguments: argparse.Namespace) -> int:
    from aisec_common.reproduce import reproduce

    for name in ("seeds", "jobs"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, not {value}")
    return reproduce(
        arguments.rooms,
        scale=arguments.scale,
        seeds=arguments.seeds,
        arms=arguments.arms,
        out=arguments.out,
        resume=arguments.resume,
        jobs=arguments.jobs,
    )


def _report(arguments: argparse.Namespace) -> int:
    if arguments.readme is None:
        from aisec_common.reproduce import newest_run, write_report

        return write_report(arguments.folder or newest_run())
    from aisec_common.files import write_atomic
    from aisec_common.readme import refresh, room_of

    if arguments.folder is not None:
        raise ValueError("--readme reads the folders its own blocks name; give no other")
    write_atomic(arguments.readme, refresh(arguments.readme, room_of(arguments.readme)))
    return 0


def _new_room(arguments: argparse.Namespace) -> int:
    from aisec_common.new_room import new_room

    folder = new_room(arguments.name, arguments.root)
    print(f"wrote {folder}\nnext: uv lock && uv sync --all-packages && nox -s test-{arguments.name}")
    return 0


def _room_command(words: list[str]) -> int:
    """`aisec ROOM ARGS` = the console script of the distribution that owns the room's study."""
    rooms = {room.name: room for room in installed_rooms()}
    if words[0] not in rooms:
        known = ", ".join([*VERBS, *rooms])
        raise ValueError(f"{words[0]!r} is neither a command nor an installed room; known: {known}")
    room: Room = rooms[words[0]]
    script = room.console_script()
    if script is None:
        raise ValueError(f"room {room.name} has no command of its own; try aisec reproduce {room.name}")
    module, _, function = script.partition(":")
    sys.argv = [room.name, *words[1:]]
    return getattr(importlib.import_module(module), function)() or 0


def _print_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    if lines:
        print("\n" + table.plain(columns, lines, shutil.get_terminal_size((120, 24)).columns))


VERBS = ("list", "info", "reproduce", "report", "data", "new-room")

if __name__ == "__main__":
    sys.exit(main())

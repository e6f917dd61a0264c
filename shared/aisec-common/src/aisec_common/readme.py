"""Generated blocks of README files: card, results and tables come from committed files, never from typing.

A block stands between `<!-- aisec:KIND ARGUMENT -->` and `<!-- /aisec:KIND -->`. Kinds: `card` (of the room the README
belongs to), `results DIR` (claims judged on the records below DIR), `arms DIR METRIC ...` (mean and standard deviation
over the seeds of those records, a row an arm), `table FILE` (a CSV file, or the `rows` of a JSON file), `rooms` (all).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

from aisec_common.card import Card
from aisec_common.report import made_with
from aisec_common.result import outcomes_of, read_records
from aisec_common.rooms import Room, installed_rooms
from aisec_common.table import COLUMNS, markdown, number, spread
from aisec_common.table import rows as claim_rows
from aisec_common.verdict import judge

BLOCK = re.compile(r"(<!-- aisec:(\w+)(?: ([^>]*?))? -->\n)(.*?)(<!-- /aisec:\2 -->)", re.DOTALL)


def refresh(readme: Path, room: Room | None = None) -> str:
    """The text of a README with every generated block made anew.

    Args:
        readme: the file; paths in its blocks are relative to its folder.
        room: the room it belongs to; None for the README of the workspace.

    Raises:
        ValueError: if a block is of an unknown kind, or what it shows is missing or not valid.
    """

    def block(match: re.Match[str]) -> str:
        opening, kind, argument, _, closing = match.groups()
        if kind not in KINDS:
            raise ValueError(f"{readme.name}: unknown block aisec:{kind}; known: {', '.join(KINDS)}")
        if room is None and kind in ("card", "results", "arms"):
            raise ValueError(f"{readme.name}: block aisec:{kind} belongs into the README of a room")
        return f"{opening}{KINDS[kind](readme.parent, argument or '', room)}\n{closing}"

    try:
        text = readme.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{readme.name}: is no text in UTF-8") from None
    if text.count("<!-- aisec:") != len(BLOCK.findall(text)):
        raise ValueError(f"{readme.name}: a block aisec:... is not closed, or closed under another name")
    return BLOCK.sub(block, text)


def room_of(readme: Path) -> Room | None:
    """The installed room whose project folder holds `readme`, or None."""
    for room in installed_rooms():
        if room.package.resolve().parents[1] == readme.resolve().parent:  # ROOM/src/package
            return room
    return None


def _card(folder: Path, argument: str, room: Room | None) -> str:
    assert room is not None
    return card_text(room.card())


def card_text(card: Card) -> str:
    """The card as Markdown: paper, use, and the tables of claimed numbers, gaps and evidence."""
    parts = [
        f"**{card.paper.title}** ({card.paper.venue}), {', '.join(card.paper.authors)}, "
        f"[arXiv {card.paper.arxiv}](https://arxiv.org/abs/{card.paper.arxiv}). "
        f"Licence of the authors' code: {card.paper.licence_code}; of their data: {card.paper.licence_data}.",
        f"Threat model: {card.use.threat_model}",
        f"Intended use: {card.use.intended}",
        f"Misuse: {card.use.misuse}",
        "When it helps:",
        "\n".join(f"- {line}" for line in card.use.helps),
        "When it hurts, or misleads:",
        "\n".join(f"- {line}" for line in card.use.hurts),
        *_card_tables(card),
    ]
    return "\n\n".join(parts)


def _card_tables(card: Card) -> list[str]:
    tables = [
        (("the paper's number", "value"), [(row.what, row.value) for row in card.claimed]),
        (("not reproduced here", "why"), [(row.what, row.why) for row in card.not_reproduced]),
        (("component", "built from"), [(row.component, row.level) for row in card.evidence]),
    ]
    return [markdown(columns, lines) for columns, lines in tables if lines]


def _results(folder: Path, argument: str, room: Room | None) -> str:
    assert room is not None
    read = read_records(folder / argument, room.name)
    if not read:
        raise ValueError(f"{argument}: holds no record of room {room.name}")
    records = [record for arms in read.values() for record, _ in arms.values()]
    return markdown(COLUMNS, claim_rows(judge(room.load(), outcomes_of(read)))) + f"\n\n{made_with(records)}"


def _arms(folder: Path, argument: str, room: Room | None) -> str:
    assert room is not None
    where, *metrics = argument.split()
    outcomes = outcomes_of(read_records(folder / where, room.name))
    lines = []
    for arm in room.load().arms:
        found = [by_arm[arm].metrics for by_arm in outcomes.values() if arm in by_arm]
        if found:
            each = ([one[metric] for one in found if metric in one] for metric in metrics)
            lines.append((arm, str(len(found)), *(spread(values) for values in each)))
    if not lines:
        raise ValueError(f"{argument}: holds no record of room {room.name}")
    return markdown(("arm", "seeds", *metrics), lines)


def _table(folder: Path, argument: str, room: Room | None) -> str:
    path = folder / argument
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            rows = json.loads(text)["rows"]
            columns = list(rows[0])
            lines = [[number(cell) if isinstance(cell, float) else str(cell) for cell in row.values()] for row in rows]
        else:
            columns, *lines = csv.reader(text.splitlines())
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{argument}: holds no table ({error})") from None
    return markdown(columns, lines)


def _rooms(folder: Path, argument: str, room: Room | None) -> str:
    lines = []
    for each in installed_rooms():
        if not (folder / "packages" / each.name).is_dir():
            continue  # installed from elsewhere
        card = each.card()
        link = f"[{each.name}](packages/{each.name}/README.md)"
        lines.append((link, card.use.summary, f"[{card.paper.arxiv}](https://arxiv.org/abs/{card.paper.arxiv})"))
    return markdown(("room", "what it does", "paper"), lines)


KINDS: dict[str, Callable[[Path, str, Room | None], str]] = {
    "card": _card,
    "results": _results,
    "arms": _arms,
    "table": _table,
    "rooms": _rooms,
}

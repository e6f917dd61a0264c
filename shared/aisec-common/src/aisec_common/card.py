"""card.toml: what a room rests on, what it is for, and what could not be reproduced."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
LEVELS = ("paper", "authors' code", "summary", "abstract", "design")


@dataclass(frozen=True, kw_only=True)
class Paper:
    """The paper a room builds; `licence_code`, `licence_data` are those of the authors' own release, in words."""

    title: str
    authors: list[str]
    arxiv: str
    venue: str
    licence_code: str
    licence_data: str


@dataclass(frozen=True, kw_only=True)
class Use:
    """What the room is for, against whom, what it must not be used for, when it helps and when it hurts."""

    summary: str
    threat_model: str
    intended: str
    misuse: str
    helps: list[str]
    hurts: list[str]


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A number the paper gives."""

    what: str
    value: str


@dataclass(frozen=True, kw_only=True)
class NotReproduced:
    """Something of the paper that does not come out here, or cannot be tried, and why."""

    what: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a component was built from: one of LEVELS."""

    component: str
    level: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """A room's card; see `read_card`."""

    paper: Paper
    use: Use
    claimed: list[Claimed]
    not_reproduced: list[NotReproduced]
    evidence: list[Evidence]


def read_card(path: Path) -> Card:
    """Reads and validates a card.toml: the tables [paper], [use], [[claimed]], [[not_reproduced]], [[evidence]].

    Raises:
        ValueError: in one line naming the file and the key, if it is missing, is no TOML, lacks a key, has an unknown
            or empty one, or an evidence level that is not one of LEVELS.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        tables = _take(content, "card", {"paper", "use", "claimed", "not_reproduced", "evidence"})
        evidence = [_build(Evidence, row, "evidence") for row in _rows(tables, "evidence")]
        for row in evidence:
            if row.level not in LEVELS:
                raise ValueError(f"evidence.level {row.level!r} is not one of {', '.join(LEVELS)}")
        return Card(
            paper=_build(Paper, tables["paper"], "paper"),
            use=_build(Use, tables["use"], "use"),
            claimed=[_build(Claimed, row, "claimed") for row in _rows(tables, "claimed")],
            not_reproduced=[_build(NotReproduced, row, "not_reproduced") for row in _rows(tables, "not_reproduced")],
            evidence=evidence,
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.parent.name}/{path.name}: {error}") from None


def _take(table: Any, name: str, keys: set[str]) -> Mapping[str, Any]:
    if not isinstance(table, dict):
        raise ValueError(f"{name} must be a table")
    for problem, odd in (("lacks", keys - set(table)), ("has the unknown key", set(table) - keys)):
        if odd:
            raise ValueError(f"{name} {problem} {', '.join(sorted(odd))}")
    return table


def _rows(tables: Mapping[str, Any], name: str) -> list[Any]:
    rows = tables[name]
    if not isinstance(rows, list):
        raise ValueError(f"{name} must be an array of tables, [[{name}]]")
    return rows


def _build(kind: type[T], table: Any, name: str) -> T:
    declared: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    required = {key for key, field in declared.items() if field.default is MISSING}
    values = _take(table, name, required)
    for key, value in values.items():
        if declared[key].type == "str" and not (isinstance(value, str) and value.strip()):
            raise ValueError(f"{name}.{key} must be a text, not {value!r}")
        if declared[key].type == "list[str]" and not (
            isinstance(value, list) and value and all(isinstance(item, str) and item.strip() for item in value)
        ):
            raise ValueError(f"{name}.{key} must be a list of texts, not {value!r}")
    return kind(**values)


if __name__ == "__main__":  # the release session runs this file alone, with nothing installed
    try:
        read_card(Path(sys.argv[1]))
    except ValueError as problem:
        sys.exit(str(problem))

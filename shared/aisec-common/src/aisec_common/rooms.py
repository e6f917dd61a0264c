"""The installed rooms, found by entry point: a third party's package joins by declaring one."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path

from aisec_common.card import Card, read_card
from aisec_common.study import Study

GROUP = "aisec.studies"


@dataclass(frozen=True, kw_only=True)
class Room:
    """One installed room: its name, the distribution that brings it, and where its study stands ("module:attribute").

    Nothing of the room is imported before `load`.
    """

    name: str
    distribution: str
    version: str
    study: str

    @property
    def package(self) -> Path:
        """The folder of the room's import package, found without importing it."""
        top = self.study.partition(":")[0].partition(".")[0]
        spec = importlib.util.find_spec(top)
        if spec is None or spec.origin is None:
            raise ValueError(f"room {self.name}: its package {top} is not installed; reinstall {self.distribution}")
        return Path(spec.origin).parent

    def card(self) -> Card:
        """The room's card.

        Raises:
            ValueError: if it is missing or not valid.
        """
        return read_card(self.package / "card.toml")

    def load(self) -> Study:
        """Imports the room and returns its study.

        Raises:
            Exception: whatever the import raises; TypeError if the entry point is no Study of this room.
        """
        module, _, attribute = self.study.partition(":")
        study = getattr(importlib.import_module(module), attribute)
        if not isinstance(study, Study) or study.room != self.name:
            raise TypeError(f"entry point {self.name} = {self.study} is not the Study of room {self.name!r}")
        return study

    def console_script(self) -> str | None:
        """The target "module:function" of the console script of the room's distribution, or None."""
        for point in Distribution.from_name(self.distribution).entry_points:
            if point.group == "console_scripts":
                return point.value
        return None


def installed_rooms() -> list[Room]:
    """The rooms of every installed distribution, by name; two with one name are an error.

    Raises:
        ValueError: if two distributions declare the same room.
    """
    rooms: dict[str, Room] = {}
    seen: set[str] = set()
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name in seen:
            continue  # the same distribution found again further along sys.path
        seen.add(name)
        for point in _studies(distribution):
            if point.name in rooms:
                raise ValueError(f"room {point.name} is declared by {rooms[point.name].distribution} and {name}")
            rooms[point.name] = Room(
                name=point.name, distribution=name, version=distribution.version, study=point.value
            )
    return [rooms[name] for name in sorted(rooms)]


def choose_rooms(names: list[str]) -> list[Room]:
    """The installed rooms called `names`, each once, in that order; all of them if `names` is empty.

    Raises:
        ValueError: if a name is unknown or no room is installed.
    """
    rooms = {room.name: room for room in installed_rooms()}
    if not rooms:
        raise ValueError("no room is installed: pip install one, for example aisec-refusal-index")
    for name in names:
        if name not in rooms:
            raise ValueError(f"room {name!r} is not installed; installed: {', '.join(rooms)}")
    return [rooms[name] for name in dict.fromkeys(names)] if names else list(rooms.values())


def _studies(distribution: Distribution) -> list[EntryPoint]:
    return [point for point in distribution.entry_points if point.group == GROUP]

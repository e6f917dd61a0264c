"""The players of the game: the parts of the model whose bit width is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Player:
    """One part of the model that takes one width from `bits`: a transformer block, a group of linears or one linear.

    Attributes:
        name: where it sits in the model, for example `model.layers.0`.
        block: index of the transformer block it belongs to.
        modules: names of its linear modules.
        shapes: (outputs, inputs) of each module.
        nbytes: bytes of the whole player at each width, in the order of the game's `bits`.

    Raises:
        ValueError: if modules and shapes do not match, or a number is not positive.

    >>> Player(name="h.0", block=0, modules=("h.0.up",), shapes=((8, 4),), nbytes=(16, 8)).weights
    32
    """

    name: str
    block: int
    modules: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    nbytes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.modules or len(self.modules) != len(self.shapes):
            raise ValueError(f"player {self.name}: modules must be at least one and have one shape each")
        if self.block < 0 or min((size for shape in self.shapes for size in shape), default=0) < 1:
            raise ValueError(f"player {self.name}: block must be at least 0 and shapes positive")
        if any(count < 0 for count in self.nbytes):
            raise ValueError(f"player {self.name}: nbytes must not be negative")

    @property
    def weights(self) -> int:
        """Number of quantised weights."""
        return sum(outputs * inputs for outputs, inputs in self.shapes)

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON values; see `from_json`."""
        return {
            **asdict(self),
            "modules": list(self.modules),
            "shapes": [list(shape) for shape in self.shapes],
            "nbytes": list(self.nbytes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Player:
        """The player that `to_json` wrote.

        Raises:
            ValueError: in one line, if a field is missing or of another type.
        """
        try:
            return cls(
                name=str(data["name"]),
                block=int(data["block"]),
                modules=tuple(str(module) for module in data["modules"]),
                shapes=tuple((int(outputs), int(inputs)) for outputs, inputs in data["shapes"]),
                nbytes=tuple(int(count) for count in data["nbytes"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"player: cannot be read ({error!r}); expected the fields of impq.player.Player") from None

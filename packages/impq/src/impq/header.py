"""What a game was played with: the header of its journal and of its artefact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from impq.player import Player
from impq.walks import Direction, Walks

NOT_HASHED = ("model_name", "v_high", "v_low")  # a name and two results; everything else decides v or the walks


@dataclass(frozen=True, kw_only=True)
class GameHeader:
    """What a game was played with: model, text, quantiser, players and walks.

    Attributes:
        model_name, model_hash, calib_hash: of the full-precision model and the calibration tokens.
        backend, bits, group_size: the quantiser, its widths from high to low, and its groups.
        granularity: what a player is: `block`, `group` or `linear`.
        payoff: what demotion does: `quantize`, or `prune` (a block at its low level is the identity).
        players: see `Player`.
        other_bytes: bytes of the model that are not quantised.
        depth, antithetic, seed, direction: of the `Walks`.
        loss_unit: of every loss. Only "nats/token" is measured today. Losses of games in different units must not be
            compared, nor their plans where the covariance decided them: it is in squared units.
        n_tokens: scored calibration tokens.
        v_high, v_low: loss with all players high, all low; None until measured.

    Raises:
        ValueError: if the fields do not fit each other.
    """

    model_name: str
    model_hash: str
    calib_hash: str
    backend: str
    bits: tuple[int, ...]
    group_size: int | str | None
    granularity: str
    payoff: str = "quantize"
    players: tuple[Player, ...]
    other_bytes: int
    depth: int | None = None
    antithetic: bool = False
    seed: int = 0
    direction: Direction = "demote"
    loss_unit: str = "nats/token"
    n_tokens: int
    v_high: float | None = None
    v_low: float | None = None

    def __post_init__(self) -> None:
        if len(self.bits) < 2 or any(low >= high for high, low in zip(self.bits, self.bits[1:], strict=False)):
            raise ValueError(f"bits must fall from high to low, for example (4, 2); got {self.bits}")
        if self.payoff not in ("quantize", "prune"):
            raise ValueError(f"payoff must be 'quantize' or 'prune', got {self.payoff!r}")
        wrong = next((player for player in self.players if len(player.nbytes) != len(self.bits)), None)
        if wrong is not None:
            raise ValueError(f"players: {wrong.name} has {len(wrong.nbytes)} sizes for {len(self.bits)} widths")
        if len({player.name for player in self.players}) < len(self.players):
            raise ValueError("players must have different names")
        self.walks  # noqa: B018  # it checks players, depth, direction and seed

    @property
    def walks(self) -> Walks:
        """The walks of this game."""
        return Walks(
            players=len(self.players),
            widths=len(self.bits),
            depth=self.depth,
            antithetic=self.antithetic,
            direction=self.direction,
            seed=self.seed,
        )

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the demotion steps, for example `model.layers.3 to 2 bits`."""
        return tuple(f"{player.name} to {low} bits" for player in self.players for low in self.bits[1:])

    @property
    def v_start(self) -> float | None:
        """Loss before the first step of every walk; None until measured."""
        return self.v_high if self.direction == "demote" else self.v_low

    @property
    def config_hash(self) -> str:
        """SHA-256 over everything that decides a loss or a walk: not the number of walks, nor names, nor results."""
        return hashlib.sha256(json.dumps(self._hashed(), sort_keys=True).encode()).hexdigest()

    def difference(self, other: GameHeader) -> str | None:
        """The first field in which the games differ, as words that follow `made with`; None if they are the same."""
        ours, theirs = self._hashed(), other._hashed()
        name = next((key for key in ours if ours[key] != theirs[key]), None)
        if name is None:
            return None
        if name == "players":
            return "other players than this run"
        return f"{name} {_short(ours[name])}, this run has {_short(theirs[name])}"

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON values with schema and hash; see `from_json`."""
        return {"schema": 1, "config_hash": self.config_hash, **self._fields()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GameHeader:
        """The header that `to_json` wrote.

        Raises:
            ValueError: in one line, if a field is missing or wrong, or the hash does not fit the fields.
        """
        if data.get("schema") != 1:
            raise ValueError(f"game header: schema is {data.get('schema')!r}; this version reads schema 1")
        try:
            values = {field.name: data[field.name] for field in fields(cls)}
            values["bits"] = tuple(int(width) for width in values["bits"])
            values["players"] = tuple(Player.from_json(player) for player in values["players"])
            header = cls(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"game header: cannot be read ({error!r})") from None
        if data.get("config_hash") != header.config_hash:
            raise ValueError("game header: config_hash does not fit the fields; the file was edited or damaged")
        return header

    def _hashed(self) -> dict[str, Any]:
        values = {key: value for key, value in self._fields().items() if key not in NOT_HASHED}
        return {**values, "depth": self.walks.length}  # all steps is the same game as None

    def _fields(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "bits": list(self.bits), "players": [player.to_json() for player in self.players]}


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) > 40 else text

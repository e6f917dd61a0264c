"""How many bytes a plan may use, as a capacity for the widths above the lowest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from impq.player import Player
from impq.spqe import Integers

ROUNDING = 1e-12  # 8 * bytes / weights, multiplied back, may fall short of the bytes by this share


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A limit on the size of the quantised model, given in one of three ways.

    Nominal average bits are counted in bits, the other two in bytes with scales and zeros, always rounded down.

    Attributes:
        avg_bits: bits averaged over the quantised weights.
        effective: whether `avg_bits` counts scales and zeros: 8 bytes / weights.
        bytes: of the whole model, parts that are not quantised included.

    Raises:
        ValueError: if not exactly one of `avg_bits` and `bytes` is given, or it is not positive.

    >>> block = Player(name="h.0", block=0, modules=("h.0.up",), shapes=((8, 4),), nbytes=(20, 12))
    >>> nominal = Budget(avg_bits=3.0)
    >>> nominal.capacity([block, block], (4, 2)), nominal.costs([block, block], (4, 2)).tolist()
    (64, [64, 64])
    >>> Budget(bytes=132).capacity([block, block], (4, 2), other_bytes=100)
    8
    """

    avg_bits: float | None = None
    effective: bool = False
    bytes: int | None = None

    def __post_init__(self) -> None:
        if (self.avg_bits is None) == (self.bytes is None):
            raise ValueError("avg_bits or bytes: give exactly one of them, for example Budget(avg_bits=3.0)")
        if self.avg_bits is not None and not (math.isfinite(self.avg_bits) and self.avg_bits > 0):
            raise ValueError(f"avg_bits is {self.avg_bits}; give a positive number of bits")
        if self.bytes is not None and (isinstance(self.bytes, bool) or self.bytes != int(self.bytes) or self.bytes < 1):
            raise ValueError(f"bytes is {self.bytes}; give a whole positive number of bytes")
        if self.effective and self.bytes is not None:
            raise ValueError("effective applies to avg_bits; bytes always counts scales and zeros")

    def costs(self, players: Sequence[Player], bits: Sequence[int]) -> Integers:
        """What each demotion step saves (steps,): bits for nominal `avg_bits`, bytes otherwise.

        Raises:
            ValueError: if a player is larger at a lower width.
        """
        sizes = self._sizes(players, bits)
        costs = sizes[:, :-1] - sizes[:, 1:]
        if (costs < 0).any():
            player = players[int(np.argwhere(costs < 0)[0][0])]
            raise ValueError(
                f"players: {player.name} grows from one width to the next lower one, {player.nbytes} bytes"
            )
        return np.asarray(costs.ravel())

    def capacity(self, players: Sequence[Player], bits: Sequence[int], other_bytes: int = 0) -> int:
        """What the steps not taken may cost together, in the unit of `costs`; at most the sum of the costs.

        Args:
            players: of the game.
            bits: widths from high to low.
            other_bytes: bytes of the model that are not quantised.

        Raises:
            ValueError: if even the lowest width for all is too large, naming the smallest feasible budget.
        """
        sizes = self._sizes(players, bits)
        high, low = int(sizes[:, 0].sum()), int(sizes[:, -1].sum())
        weights = sum(player.weights for player in players)
        if self.bytes is not None:
            limit = int(self.bytes) - other_bytes
            least = f"bytes is {self.bytes}; the smallest feasible value is {low + other_bytes}"
        else:
            assert self.avg_bits is not None
            unit = 8 if self.effective else 1
            limit = math.floor(self.avg_bits * weights / unit * (1 + ROUNDING))
            smallest = math.ceil(low * unit / weights * 1e4) / 1e4
            least = f"avg_bits is {self.avg_bits:g}; the smallest feasible value is {smallest}"
        if limit < low:
            raise ValueError(f"{least}, all players at {bits[-1]} bits")
        return min(limit, high) - low

    def most_steps(self, players: Sequence[Player], bits: Sequence[int], other_bytes: int = 0) -> int:
        """The largest number of demotion steps that a plan can need: the steps that save least taken first.

        Walks that stop there have visited every number of low players that the budget asks for.

        >>> block = Player(name="h.0", block=0, modules=("h.0.up",), shapes=((8, 4),), nbytes=(20, 12))
        >>> Budget(avg_bits=3.4).most_steps([block, block], (4, 2))
        1
        """
        costs = np.sort(self.costs(players, bits))
        excess = int(costs.sum()) - self.capacity(players, bits, other_bytes)
        return int(np.searchsorted(np.cumsum(costs), excess)) + 1 if excess > 0 else 0

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON values, without what was not given."""
        if self.bytes is not None:
            return {"bytes": int(self.bytes)}
        return {"avg_bits": self.avg_bits, "effective": self.effective}

    def _sizes(self, players: Sequence[Player], bits: Sequence[int]) -> Integers:
        """Size of each player at each width (players, widths)."""
        if self.avg_bits is not None and not self.effective:
            return np.array([[player.weights * width for width in bits] for player in players], dtype=np.int64)
        return np.array([player.nbytes for player in players], dtype=np.int64)

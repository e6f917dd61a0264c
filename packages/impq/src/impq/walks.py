"""Walks through the coalitions: which steps are demoted, in which order, starting from all high (or all low)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from impq.spqe import Integers

Coalition = int
"""The demotion steps that have been taken: bit `player * (widths - 1) + s` is set once `player` has left level `s`."""

Direction = Literal["demote", "promote"]


def levels(coalition: Coalition, players: int, widths: int = 2) -> Integers:
    """Level of every player (players,): 0 is the highest width, `widths - 1` the lowest.

    Raises:
        ValueError: if a player has taken a step without the one before, or a bit belongs to no player.

    >>> levels(0b1101, 2, 3).tolist()
    [1, 2]
    """
    steps = widths - 1
    fields = [coalition >> (player * steps) & ((1 << steps) - 1) for player in range(players)]
    if coalition >> (players * steps) or any(field & (field + 1) for field in fields):
        raise ValueError(f"coalition {coalition:#x} is no state of {players} players with {widths} widths")
    return np.array([field.bit_count() for field in fields], dtype=np.int64)


def coalition_of(levels: Sequence[int] | Integers, widths: int = 2) -> Coalition:
    """The coalition in which player i stands at `levels[i]`; the inverse of `levels`.

    Raises:
        ValueError: if a level is not one of 0..widths-1.

    >>> bin(coalition_of([1, 2], 3))
    '0b1101'
    """
    coalition = 0
    for player, level in enumerate(levels):
        if not 0 <= level < widths:
            raise ValueError(f"levels: player {player} has level {level}; it must lie in 0..{widths - 1}")
        coalition |= ((1 << int(level)) - 1) << (player * (widths - 1))
    return coalition


@dataclass(frozen=True, kw_only=True)
class Walks:
    """The walks of one game; walk m depends on the fields and m alone, so any share of them can be drawn anywhere.

    Full walks (`depth` None or all steps) are uniform: a permutation of the players, or with more than two widths a
    uniform interleaving of all steps in which each player's own steps keep their order. Truncated walks stop after
    `depth` steps. For two widths they form rounds of as many walks as players in which every player appears `depth`
    times, is first exactly once and last exactly once; one walk alone is still a uniform ordered selection. For more
    widths they are the first steps of an interleaving.

    Args:
        players: number of players L.
        widths: number of bit widths S.
        depth: steps per walk K; None is all of them.
        antithetic: walks 2p and 2p + 1 run through the same players in opposite order (rounds count pairs).
        direction: `demote` starts with every player at its highest width, `promote` at its lowest.
        seed: of the draws; they come from `SeedSequence(seed, spawn_key=(k,))`, where k is m, for antithetic walks the
            number m // 2 of the pair, and for truncated ones of two widths the round of walk (pair) m.

    Raises:
        ValueError: if a number is out of range.

    Source: arXiv 2509.15455, section 3 (SPQE): full independent walks, two widths. The rest is this package's.

    >>> walks = Walks(players=3, antithetic=True)
    >>> walks.order(0).tolist() == walks.order(1).tolist()[::-1]
    True
    >>> [bin(coalition) for coalition in Walks(players=2, seed=1).coalitions(0)]
    ['0b10', '0b11']
    """

    players: int
    widths: int = 2
    depth: int | None = None
    antithetic: bool = False
    direction: Direction = "demote"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.players < 1 or self.widths < 2:
            raise ValueError(f"walks: need at least 1 player and 2 widths, got {self.players} and {self.widths}")
        if self.depth is not None and not 1 <= self.depth <= self.steps:
            raise ValueError(f"depth must be None or lie in 1..{self.steps} (all steps), got {self.depth}")
        if self.direction not in ("demote", "promote"):
            raise ValueError(f"direction must be 'demote' or 'promote', got {self.direction!r}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")

    @property
    def steps(self) -> int:
        """Number of demotion steps, L (S - 1)."""
        return self.players * (self.widths - 1)

    @property
    def length(self) -> int:
        """Steps per walk K."""
        return self.depth or self.steps

    @property
    def start(self) -> Coalition:
        """The coalition before the first step."""
        return 0 if self.direction == "demote" else (1 << self.steps) - 1

    @property
    def end(self) -> Coalition | None:
        """The coalition after a full walk; None where walks stop before."""
        return None if self.length < self.steps else self.start ^ ((1 << self.steps) - 1)

    def at_the_cost_of(self, full: int) -> int:
        """How many of these walks take the evaluations of `full` full ones, or as many as reach every step twice.

        A full walk shares both of its ends with all others and so costs L (S - 1) - 1 evaluations of its own, a
        truncated one K. Antithetic walks stay even in number.

        >>> Walks(players=30, depth=8, antithetic=True).at_the_cost_of(16)
        58
        """
        if self.end is not None:
            return full
        unit = 2 if self.antithetic else 1
        enough = -(-2 * self.steps // self.length) * unit
        return max(round(full * (self.steps - 1) / self.length / unit) * unit, enough)

    def order(self, m: int) -> Integers:
        """The steps (K,) of walk m in the order in which they are taken."""
        index, reverse = (m // 2, m % 2 == 1) if self.antithetic else (m, False)
        if self.length < self.steps and self.widths == 2:
            visited = _round(self.players, self.length, self.seed, index // self.players)[index % self.players]
        else:
            rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(index,)))
            visited = rng.permutation(self.steps)[: self.length] // (self.widths - 1)
        return self._steps_of(visited[::-1] if reverse else visited)

    def coalitions(self, m: int) -> list[Coalition]:
        """The coalitions after 1..K steps of walk m."""
        state, states = self.start, []
        for step in self.order(m).tolist():
            state ^= 1 << step
            states.append(state)
        return states

    def _steps_of(self, visited: Integers) -> Integers:
        # the t-th visit of a player is its t-th step down, or on the way up its t-th step from the bottom
        seen = [0] * self.players
        steps = []
        for player in visited.tolist():
            taken = seen[player]
            seen[player] += 1
            within = taken if self.direction == "demote" else self.widths - 2 - taken
            steps.append(player * (self.widths - 1) + within)
        return np.array(steps, dtype=np.int64)


@lru_cache(maxsize=64)
def _round(players: int, depth: int, seed: int, index: int) -> Integers:
    """One round of truncated walks (players, depth): a balanced block design with balanced first and last elements."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    used = np.zeros(players, dtype=np.int64)
    member = np.zeros((players, players), dtype=bool)  # [walk, player]
    for walk in range(players):
        least = np.lexsort((rng.random(players), used))[:depth]
        member[walk, least] = True
        used[least] += 1
    first = _perfect_matching(member, rng)
    rows = np.arange(players)
    member[rows, first] = False
    columns = [first[:, None]]
    if depth > 1:
        last = _perfect_matching(member, rng)
        member[rows, last] = False
        middle = np.array([rng.permutation(np.flatnonzero(row)) for row in member], dtype=np.int64)
        columns += [middle, last[:, None]]
    walks = np.concatenate(columns, axis=1)
    walks.flags.writeable = False
    return walks


def _perfect_matching(member: NDArray[np.bool_], rng: np.random.Generator) -> Integers:
    # Every row and column has the same number of entries, so a perfect matching exists (Hall); rows and columns are
    # shuffled because the search itself prefers low indices.
    rows, columns = rng.permutation(len(member)), rng.permutation(len(member))
    found = maximum_bipartite_matching(csr_array(member[np.ix_(rows, columns)]), perm_type="column")
    matching = np.empty(len(member), dtype=np.int64)
    matching[rows] = columns[found]
    return matching

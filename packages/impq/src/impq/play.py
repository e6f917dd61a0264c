"""Playing a game: its walks evaluated in a good order, every finished piece journalled at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from impq.game import Game
from impq.header import GameHeader
from impq.journal import Journal, check_walks, read_header
from impq.value import Memo, Value, prefix_order
from impq.walks import Coalition

Schedule = Literal["walk", "trie"]
Progress = Callable[[int, int], None]
TRIE_PLAYERS = 20  # beyond, walks share too few prefixes for sorting them to pay (3 % at 80 players)
CHUNK = 64  # coalitions between two writes of the journal: what a kill can lose


def play(
    value: Value,
    header: GameHeader,
    n_permutations: int,
    *,
    journal: Path | str | None = None,
    share: tuple[int, int] = (0, 1),
    schedule: Schedule | None = None,
    stop_when: Callable[[Game], bool] | None = None,
    progress: Progress | None = None,
) -> Game:
    """Evaluates the walks of `header` and returns the game; SPQE of the paper for full, independent walks.

    M walks of K steps visit M (K - 1) + 2 coalitions if they are full (their ends are the same), else M K + 1; repeats
    are looked up. What is finished is in the journal, and a call with the same journal goes on from there: walk m
    depends on (seed, m) alone, so that stopping, raising M or sharding changes no number.

    Args:
        value: the losses of coalitions.
        header: what is played; its `v_high` and `v_low` are measured here.
        n_permutations: number of walks M, even if they are antithetic.
        journal: file of finished pieces.
        share: (index, number) of the shard; the game holds only its walks.
        schedule: `walk`, one walk after the other; `trie`, all coalitions of all walks in the order of their prefix
            tree, which costs the fewest block-forwards for few players. None chooses `trie` for up to 20 players.
        stop_when: asked from the second walk (pair) on whether the game so far is enough; needs `walk`, as shards do.
        progress: called as `progress(walks done, walks)`, or coalitions with `trie`.

    Raises:
        ValueError: for a number out of range, a schedule that does not fit, a loss that is not finite, or a journal of
            another game.

    Source: arXiv 2509.15455, section 3 (SPQE).
    """
    walks, unit = header.walks, 2 if header.antithetic else 1
    if n_permutations < unit or n_permutations % unit:
        even = " and even" if header.antithetic else ""
        raise ValueError(f"n_permutations must be at least {unit}{even}, got {n_permutations}")
    index, number = share
    if not 0 <= index < number:
        raise ValueError(f"share must be (index, number) with 0 <= index < number, got {share}")
    mine = [m for m in range(n_permutations) if m // unit % number == index]
    if not mine:
        raise ValueError(f"share {share}: {n_permutations} walks are too few for {number} shards")
    whole = stop_when is None and number == 1
    if schedule is None:
        schedule = "trie" if walks.players <= TRIE_PLAYERS and whole else "walk"
    elif schedule not in ("walk", "trie") or (schedule == "trie" and not whole):
        raise ValueError(f"schedule must be 'walk', or 'trie' without shards and stop_when, got {schedule!r}")
    memo = Memo(value, header.steps)
    journal = None if journal is None else Path(journal)
    known = read_header(journal) if journal is not None else None
    if known is not None:
        header = replace(header, v_high=known.v_high, v_low=known.v_low)
    if known is None or header.v_start is None:  # the latter: walks in the other direction, refused below
        header = measured(memo, header)
    memo.known |= ends_of(header)
    with Journal(journal, header) if journal is not None else nullcontext() as book:
        if book is not None:
            memo.known |= book.coalitions | _visited(book)
        if schedule == "trie":
            _evaluate_trie(memo, [c for m in mine for c in walks.coalitions(m)], walks.steps, book, progress)
            return _game(header, mine, memo, schedule)
        done: list[int] = []
        for m in mine:
            start = time.perf_counter()
            losses = memo(walks.coalitions(m)).tolist()
            if book is not None and m not in book.permutations:
                book.add_permutation(m, walks.order(m).tolist(), losses, seconds=time.perf_counter() - start)
            done.append(m)
            if progress is not None:
                progress(len(done), len(mine))
            if stop_when is not None and len(done) >= 2 * unit and len(done) % unit == 0:
                game = _game(header, done, memo, schedule)
                if stop_when(game):
                    return game
        return _game(header, done, memo, schedule)


def replay(journal: Journal, n_permutations: int | None = None) -> Game:
    """The game of a journal's walks, without evaluating anything.

    Args:
        journal: that holds them as walks, not as the coalitions of the schedule `trie`.
        n_permutations: only the first so many walks; all by default.

    Raises:
        ValueError: if there is no walk, one before the last is missing, or an antithetic one has no partner.
    """
    header, done = journal.header, sorted(journal.permutations)
    check_walks(journal.path, header, done, n_permutations)
    done = done[:n_permutations]
    memo = Memo(_nothing, header.steps)
    memo.known |= ends_of(header) | _visited(journal)
    return _game(header, done, memo, "walk")


def measured(value: Memo, header: GameHeader) -> GameHeader:
    """The header with v_high and v_low, or with only that of the two where the walks start if they are truncated."""
    ends = _ends(header)
    losses = dict(zip(ends, value(ends).tolist(), strict=True))
    return replace(header, v_high=losses.get(0), v_low=losses.get((1 << header.walks.steps) - 1))


def block_forwards(coalitions: Sequence[Coalition], header: GameHeader) -> int:
    """Block-forwards that these coalitions cost in this order where all block inputs of the ends and the last are kept.

    A coalition is computed from the first block on in which it differs from the best of the three; where payoff is
    `prune`, without the blocks it leaves out. Players must be in the order of their blocks.
    """
    blocks = [player.block for player in header.players for _ in header.bits[1:]]
    ends, total, cost = {0, (1 << len(blocks)) - 1}, blocks[-1] + 1, 0
    kept: set[Coalition] = set()  # both ends once evaluated, and the last
    for coalition in coalitions:
        # the lowest bit is the first step that differs; where none does, the last block is run for its output
        differing = [coalition ^ other for other in kept]
        start = max((blocks[(bits & -bits).bit_length() - 1] if bits else total - 1 for bits in differing), default=0)
        cost += total - start
        if header.payoff == "prune":
            cost -= sum(block >= start for step, block in enumerate(blocks) if coalition >> step & 1)
        kept = (kept & ends) | {coalition}
    return cost


def ends_of(header: GameHeader) -> dict[Coalition, float]:
    """The measured losses of the coalitions that all walks share: all high, all low, or only where they start."""
    ends = {0: header.v_high, (1 << header.walks.steps) - 1: header.v_low}
    return {coalition: loss for coalition, loss in ends.items() if loss is not None}


def _ends(header: GameHeader) -> list[Coalition]:
    walks = header.walks
    return [walks.start] if walks.end is None else [walks.start, walks.end]


def _visited(journal: Journal) -> dict[Coalition, float]:
    walks = journal.header.walks
    return {
        coalition: loss
        for m, losses in journal.permutations.items()
        for coalition, loss in zip(walks.coalitions(m), losses, strict=True)
    }


def _nothing(coalitions: Sequence[Coalition]) -> list[float]:
    raise AssertionError(f"{len(coalitions)} coalitions are not in the journal")


def _game(header: GameHeader, done: Sequence[int], memo: Memo, schedule: Schedule) -> Game:
    """The game of some walks; its counts are those of an uninterrupted run, however often this one was interrupted."""
    walks = header.walks
    paths = [walks.coalitions(m) for m in done]
    asked = [*_ends(header), *(c for path in paths for c in (path if walks.end is None else path[:-1]))]
    distinct = list(dict.fromkeys(asked))
    evaluated = distinct
    if schedule == "trie":
        evaluated = [*_ends(header), *prefix_order(set(distinct).difference(_ends(header)), walks.steps)]
    return Game(
        header=header,
        orders=np.stack([walks.order(m) for m in done]),
        losses=np.stack([memo(path) for path in paths]),
        n_evaluations=len(distinct),
        n_memo_hits=len(asked) - len(distinct),
        n_block_forwards=float(block_forwards(evaluated, header)),
    )


def _evaluate_trie(
    memo: Memo, coalitions: Sequence[Coalition], steps: int, book: Journal | None, progress: Progress | None
) -> None:
    order = [c for c in prefix_order(set(coalitions), steps) if c not in memo.known]
    for at in range(0, len(order), CHUNK):
        chunk = order[at : at + CHUNK]
        losses = memo(chunk).tolist()
        if book is not None:
            book.add_coalitions(dict(zip(chunk, losses, strict=True)))
        if progress is not None:
            progress(at + len(chunk), len(order))

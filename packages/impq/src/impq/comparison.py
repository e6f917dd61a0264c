"""Every method's plans on one model: bits against held-out loss, at stated numbers of evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from impq import baselines
from impq.budget import Budget
from impq.estimate import ModelGame
from impq.game import Game
from impq.header import GameHeader
from impq.interaction import Interaction
from impq.journal import Journal, read_header
from impq.plan import BitPlan, plan_of, solve
from impq.play import ends_of, measured, play
from impq.value import Memo, Value, prefix_order

Show = Callable[[str, int, int], None]
CHUNK = 16  # coalitions between two writes of a journal
INTERACTIONS: Mapping[Interaction, str] = {
    "covariance": "impq",
    "none": "shapley",
    "precedence": "precedence",
    "pairwise_ls": "pairwise_ls",
}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One method's plan for one budget.

    Attributes:
        method: `impq` (the paper's covariance), `shapley`, `precedence`, `pairwise_ls`, or a baseline.
        walks: `full` or `truncated`, empty for methods that need none.
        seed: of the walks or of the draw.
        avg_bits: asked for.
        plan: what came out.
        evaluations: losses measured to make it; one backward pass counts as one.
    """

    method: str
    walks: str = ""
    seed: int = 0
    avg_bits: float
    plan: BitPlan
    evaluations: int


@dataclass
class JournalledValue:
    """A value function that keeps every loss in a file and asks in prefix order; callable like any other."""

    value: Value
    path: Path
    header: GameHeader
    show: Callable[[int, int], None] | None = None
    known: dict[int, float] = field(default_factory=dict)

    def __call__(self, coalitions: Sequence[int]) -> list[float]:
        memo = Memo(self.value, self.header.steps)
        if not self.known:
            old = read_header(self.path)
            if old is None:
                self.header = measured(memo, self.header)
            else:
                self.header = replace(self.header, v_high=old.v_high, v_low=old.v_low)
            self.known = ends_of(self.header)
        with Journal(self.path, self.header) as journal:
            self.known |= journal.coalitions
            new = [c for c in prefix_order(set(coalitions), self.header.walks.steps) if c not in self.known]
            for at in range(0, len(new), CHUNK):
                chunk = new[at : at + CHUNK]
                losses = dict(zip(chunk, memo(chunk).tolist(), strict=True))
                journal.add_coalitions(losses)
                self.known |= losses
                if self.show is not None:
                    self.show(at + len(chunk), len(new))
        return [self.known[c] for c in coalitions]


def candidates(
    game: ModelGame,
    folder: Path,
    *,
    avg_bits: Sequence[float],
    permutations: int,
    seeds: int,
    shallow: float,
    show: Show,
) -> Iterator[Candidate]:
    """The plans of every method for every budget; what is measured for them is journalled in `folder`.

    Games of full and of truncated walks take equally many evaluations. Truncated walks are as deep as a budget of
    `shallow` average bits needs, and serve the budgets from there up.

    Args:
        game: of two widths.
        folder: of the journals.
        avg_bits: budgets in nominal bits.
        permutations: full walks M, in antithetic pairs.
        seeds: independent sets of walks.
        shallow: the least budget that truncated walks serve.
        show: called as `show(what, done, total)`.
    """
    header = game.header
    budgets = {bits: Budget(avg_bits=bits) for bits in avg_bits}
    deep = max(budget.most_steps(header.players, header.bits, header.other_bytes) for budget in budgets.values())
    served = [bits for bits in avg_bits if bits >= shallow]
    depth = max((budgets[b].most_steps(header.players, header.bits, header.other_bytes) for b in served), default=0)
    for seed in range(seeds):
        full = replace(header, antithetic=True, seed=seed)
        games = {"full": (full, permutations, list(avg_bits))}
        if depth:
            truncated = replace(full, depth=depth)
            games["truncated"] = (truncated, truncated.walks.at_the_cost_of(permutations), served)
        for walks, (played, n, wanted) in games.items():
            what = f"{walks} walks, seed {seed}"
            result = play(
                game.value,
                played,
                n,
                journal=folder / f"{walks}-{seed}.jsonl",
                schedule="walk",
                progress=lambda done, total, what=what: show(what, done, total),  # type: ignore[misc]
            )
            for interaction, method in INTERACTIONS.items():
                if interaction == "covariance" and walks == "truncated":
                    continue  # not defined there
                for bits in wanted:
                    plan = solve(result, budgets[bits], interaction=interaction)
                    yield Candidate(
                        method=method,
                        walks=walks,
                        seed=seed,
                        avg_bits=bits,
                        plan=plan,
                        evaluations=result.n_evaluations,
                    )
            if walks == "full" and seed == 0:
                yield from _baselines(game, result, folder, budgets, deep, show)


def _baselines(
    game: ModelGame, any_game: Game, folder: Path, budgets: Mapping[float, Budget], deep: int, show: Show
) -> Iterator[Candidate]:
    header, steps = any_game.header, any_game.walks.steps
    value = JournalledValue(
        game.value, folder / "calibration.jsonl", header, lambda done, total: show("single demotions", done, total)
    )
    scores = {
        "isolated": (baselines.isolated(value, steps), steps + 1),
        "lim": (game.score("lim"), 1),
        "llm_mq": (game.score("llm_mq"), 1),
        "activation": (game.score("activation"), 1),
        "shuffled": (baselines.shuffled(any_game.shapley, seed=0), any_game.n_evaluations),
    }
    scores |= {f"random_{seed}": (baselines.random_scores(steps, seed=seed), 0) for seed in range(3)}
    for name, (values, evaluations) in scores.items():
        method, _, seed = name.partition("_") if name.startswith("random") else (name, "", "0")
        for bits, budget in budgets.items():
            plan = solve(any_game, budget, scores=values)
            yield Candidate(method=method, seed=int(seed), avg_bits=bits, plan=plan, evaluations=evaluations)
    value.show = None
    rounds = 0

    def one_round(coalitions: Sequence[int]) -> list[float]:
        nonlocal rounds
        losses = value(coalitions)
        rounds += 1
        show("greedy demotion", min(rounds, deep), deep)
        return losses

    order, _ = baselines.greedy_order(one_round, steps, deep)
    for bits, budget in budgets.items():
        need = budget.costs(header.players, header.bits).sum() - budget.capacity(
            header.players, header.bits, header.other_bytes
        )
        saved = np.cumsum(budget.costs(header.players, header.bits)[order])
        taken = int(np.searchsorted(saved, need)) + 1
        low = np.zeros(steps, dtype=bool)
        low[order[:taken]] = True
        asked = sum(steps - k for k in range(taken)) + 1
        yield Candidate(method="greedy", avg_bits=bits, plan=plan_of(header, low, budget), evaluations=asked)


def judge(
    found: Sequence[Candidate], quantiser: str, game: ModelGame, folder: Path, *, show: Show
) -> list[dict[str, Any]]:
    """Held-out loss and perplexity of every plan under one quantiser, a row each.

    Args:
        found: the plans.
        quantiser: its name.
        game: the same players under that quantiser, on held-out tokens.
        folder: of the journals.
        show: called as `show(what, done, total)`.
    """
    value = JournalledValue(
        game.value,
        folder / f"held-out-{quantiser}.jsonl",
        game.header,
        lambda done, total: show(f"held out, {quantiser}", done, total),
    )
    players = game.header.players
    rows = []
    for candidate, loss in zip(found, value([candidate.plan.coalition for candidate in found]), strict=True):
        levels = candidate.plan.levels
        nbytes = sum(player.nbytes[level] for player, level in zip(players, levels, strict=True))
        rows.append(
            {
                "method": candidate.method,
                "walks": candidate.walks,
                "seed": candidate.seed,
                "evaluations": candidate.evaluations,
                "quantiser": quantiser,
                "avg_bits": candidate.avg_bits,
                "effective_bits": round(8 * nbytes / sum(player.weights for player in players), 3),
                "low": sum(level > 0 for level in levels),
                "nll": round(loss, 6),
                "perplexity": round(math.exp(min(loss, 700)), 3),
                "status": candidate.plan.status,
                "plan": "".join(str(level) for level in levels),
            }
        )
    return rows


def uniform_losses(quantiser: str, middle: ModelGame, folder: Path) -> dict[str, float]:
    """Held-out loss of the plans with one width for all, by width: 4 and 2 as judged, and the 3 bit users ship today.

    Args:
        quantiser: its name; `judge` has measured its ends.
        middle: the game of the same players with widths 4 and 3, on held-out tokens.
        folder: of the journals.
    """
    ends = read_header(folder / f"held-out-{quantiser}.jsonl")
    assert ends is not None  # `judge` wrote it
    high, low = ends_of(ends).values()
    three = (1 << middle.header.walks.steps) - 1
    value = JournalledValue(middle.value, folder / f"uniform-3-{quantiser}.jsonl", middle.header)
    return {"2": low, "3": value([three])[0], "4": high}

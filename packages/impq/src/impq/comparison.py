"""Every method's plans on one model: bits against held-out loss, at stated numbers of evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from impq import baselines
from impq.backend import Backend, GroupSize, check_bits
from impq.budget import Budget
from impq.estimate import ModelGame
from impq.game import Game
from impq.header import GameHeader
from impq.interaction import Interaction
from impq.journal import Journal, read_header
from impq.plan import BitPlan, plan_of, solve
from impq.play import ends_of, measured, play
from impq.player import Player
from impq.value import Memo, Value, prefix_order
from impq.walks import coalition_of

Show = Callable[[str, int, int], None]
BITS = (4, 2)  # of the games and plans
SHIPPED = 3  # the uniform width that users ship today
DRAWS = 3  # of random and of shuffled scores
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
            if old is not None:
                self.header = replace(self.header, v_high=old.v_high, v_low=old.v_low)
            elif self.header.v_start is None:
                self.header = measured(memo, self.header)
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

    Games of full and of truncated walks take equally many evaluations before repeated coalitions are looked up, which
    truncated walks meet more often. Truncated walks are as deep as a budget of
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
    }
    drawn = [(name, 0, *found) for name, found in scores.items()]
    for seed in range(DRAWS):
        drawn.append(("shuffled", seed, baselines.shuffled(any_game.shapley, seed=seed), any_game.n_evaluations))
        drawn.append(("random", seed, baselines.random_scores(steps, seed=seed), 0))
    for method, seed, values, evaluations in drawn:
        for bits, budget in budgets.items():
            plan = solve(any_game, budget, scores=values)
            yield Candidate(method=method, seed=seed, avg_bits=bits, plan=plan, evaluations=evaluations)
    value.show = None
    rounds = 0

    def one_round(coalitions: Sequence[int]) -> list[float]:
        nonlocal rounds
        losses = value(coalitions)
        rounds += 1
        show("greedy demotion", min(rounds, deep), deep)
        return losses

    order = baselines.greedy_order(one_round, steps, deep)[0] if deep else np.zeros(0, dtype=np.int64)
    for bits, budget in budgets.items():
        costs = budget.costs(header.players, header.bits)
        excess = int(costs.sum()) - budget.capacity(header.players, header.bits, header.other_bytes)
        taken = int(np.searchsorted(np.cumsum([0, *costs[order]]), excess))  # the fewest that save as much
        low = np.zeros(steps, dtype=bool)
        low[order[:taken]] = True
        asked = sum(steps - k for k in range(taken)) + 1
        yield Candidate(method="greedy", avg_bits=bits, plan=plan_of(header, low, budget), evaluations=asked)


def judged_bits(quantiser: Backend, players: Sequence[Player], group_size: GroupSize) -> tuple[int, ...]:
    """The widths that a quantiser is judged at: those of the plans, and 3 bit for all where it can make them.

    Raises:
        ValueError: if it cannot make a width of the plans, or its groups do not fit a layer.
    """
    try:
        for width in BITS:
            check_bits(quantiser, width)
            for player in players:
                for out, in_ in player.shapes:
                    quantiser.nbytes(out, in_, width, group_size)
    except ValueError as error:
        raise ValueError(f"deploy: {quantiser.name} cannot store these plans ({error})") from None
    return tuple(width for width in (BITS[0], SHIPPED, BITS[1]) if width in {*BITS, *quantiser.supported_bits})


def judge(
    found: Sequence[Candidate], quantiser: str, game: ModelGame, folder: Path, *, show: Show
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Held-out loss and perplexity of every plan under one quantiser, and the loss with one width for all.

    Args:
        found: the plans.
        quantiser: its name.
        game: the same players under that quantiser, on held-out tokens, at the widths of the plans or more.
        folder: of the journals; one made on other tokens or at other widths has another name and stays.
        show: called as `show(what, done, total)`.

    Returns:
        A row for every plan, and losses of uniform plans by width.
    """
    header = game.header
    players, bits = header.players, header.bits
    value = JournalledValue(
        game.value,
        folder / f"held-out-{quantiser}-{header.config_hash[:8]}.jsonl",
        header,
        lambda done, total: show(f"held out, {quantiser}", done, total),
    )
    levels = [[bits.index(width) for width in candidate.plan.bits.values()] for candidate in found]
    levels += [[level] * len(players) for level in range(len(bits))]
    losses = value([coalition_of(one, len(bits)) for one in levels])
    rows = []
    for candidate, at, loss in zip(found, levels, losses, strict=False):  # the uniform ones come after the plans
        nbytes = sum(player.nbytes[level] for player, level in zip(players, at, strict=True))
        rows.append(
            {
                "method": candidate.method,
                "walks": candidate.walks,
                "seed": candidate.seed,
                "evaluations": candidate.evaluations,
                "quantiser": quantiser,
                "avg_bits": candidate.avg_bits,
                "effective_bits": round(8 * nbytes / sum(player.weights for player in players), 3),
                "low": sum(level > 0 for level in candidate.plan.levels),
                "nll": round(loss, 6),
                "perplexity": round(math.exp(min(loss, 700)), 3),
                "status": candidate.plan.status,
                "plan": "".join(str(level) for level in candidate.plan.levels),
            }
        )
    uniform = {str(width): loss for width, loss in zip(bits, losses[len(found) :], strict=True)}
    return rows, dict(reversed(uniform.items()))

"""The arms of the study: what each method plans on a game whose every plan is known, and what it asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
from aisec_common.seeding import numpy_rng

from impq import baselines
from impq.assign import assign
from impq.game import Game
from impq.interaction import Interaction, Quadratic, quadratic, shuffle_orders
from impq.play import play
from impq.spqe import Floats
from impq.table_games import TableGame
from impq.value import TableValue

DRAWS = 20  # of what is random in an arm; its regret is their mean


@dataclass(frozen=True, kw_only=True)
class Planned:
    """An arm's plans on one game.

    Attributes:
        plans: number of low players -> the players at the low width, for each draw of what is random in the arm; no
            draw stands for all plans of that size.
        evaluations: distinct coalitions that were measured; a pass over the tokens for a score counts as one.
        held_out: losses by number of low blocks' worth of bits, (L - 1,), of plans that are finer than blocks.
    """

    plans: Callable[[int], list[list[int]]]
    evaluations: int
    held_out: Floats | None = None


@dataclass(frozen=True)
class Bench:
    """One table game with what its arms share: the walks, each played when the first arm needs it."""

    game: TableGame
    seed: int
    walks: int

    def play(self, table: Floats | None = None, **changes: Any) -> Game:
        """The game estimated from calibration losses; truncated walks are as many as take the evaluations of full ones.

        (Before repeats are looked up: with 8 players most coalitions of either kind come more than once.)
        """
        values = TableValue(self.game.calibration if table is None else table)
        header = replace(self.game.header, seed=self.seed, **changes)
        return play(values, header, header.walks.at_the_cost_of(self.walks), schedule="walk")

    @cached_property
    def full(self) -> Game:
        """The paper's walks: full and independent."""
        return self.play()

    @cached_property
    def antithetic(self) -> Game:
        """As many full walks, in antithetic pairs."""
        return self.play(antithetic=True)

    @cached_property
    def truncated(self) -> Game:
        """Antithetic walks that end where half of the players are low."""
        return self.play(antithetic=True, depth=self.players // 2)

    @property
    def players(self) -> int:
        return len(self.game.header.players)

    @property
    def value(self) -> TableValue:
        return TableValue(self.game.calibration)

    def measured(self, game: Game, interaction: Interaction = "covariance", alpha: float = 0.5) -> Planned:
        """Plans from a game's walks."""
        return self.best([quadratic(game, interaction, alpha)], game.n_evaluations)

    def scored(self, scores: Floats | None, evaluations: int) -> Planned | None:
        """Plans from scores alone; None where they need a model and the game has none."""
        return None if scores is None else self.best([_linear(scores)], evaluations)

    def best(self, objectives: Sequence[Quadratic], evaluations: int) -> Planned:
        """The best plan with k low players under each objective, for every k.

        A constant above all else is added to every player's term: it changes no order among plans of one size, and no
        objective with negative terms (LIM, noise) takes more players low than asked for.
        """
        above = [float(np.abs(o.linear).sum() + np.abs(o.pair).sum()) for o in objectives]
        ones = np.ones(self.players, dtype=np.int64)

        @cache
        def plans(k: int) -> list[list[int]]:
            found = [
                assign(o.linear + c, o.pair, ones, self.players - k).low for o, c in zip(objectives, above, strict=True)
            ]
            return [np.flatnonzero(low).tolist() for low in found]

        return Planned(plans=plans, evaluations=evaluations)

    def shuffled_pairs(self, interaction: Interaction) -> Planned:
        """The control of the pair terms: phi as estimated, pairs from walks with orders shuffled against losses."""
        game, found = self.full, []
        for draw in range(DRAWS // 4):
            pair = quadratic(shuffle_orders(game, seed=self.seed * DRAWS + draw), interaction).pair
            if interaction == "covariance":
                linear = game.shapley - (pair.sum(axis=1) - np.diag(pair))
            else:  # a pairwise game has phi_i = a_i + half the row sum of I, and pair is I / 2
                linear = game.shapley - pair.sum(axis=1)
            found.append(Quadratic(linear=linear, pair=pair))
        return self.best(found, game.n_evaluations)

    def shuffled(self) -> Planned:
        """The control of the values: the Shapley values of other players."""
        draws = [numpy_rng(self.seed, self.game.header.model_name, "shuffled", draw) for draw in range(DRAWS)]
        objectives = [_linear(rng.permutation(self.full.shapley)) for rng in draws]
        return self.best(objectives, self.full.n_evaluations)

    def greedy(self) -> Planned:
        """Demotes the measured best player each time."""
        order, _ = baselines.greedy_order(self.value, self.players, self.players)
        evaluations = self.players * (self.players + 1) // 2
        return Planned(plans=lambda k: [sorted(int(step) for step in order[:k])], evaluations=evaluations)

    def recommended(self) -> Planned:
        """This package's preset: precedence, on truncated walks where at most half of the players go low."""
        shallow, deep = self.measured(self.truncated, "precedence"), self.measured(self.antithetic, "precedence")
        return Planned(
            plans=lambda k: (shallow if k <= self.players // 2 else deep).plans(k),
            evaluations=max(shallow.evaluations, deep.evaluations),  # of one budget
        )

    def finer(self, granularity: str) -> Planned | None:
        """Plans of groups or linears at the same average bits; None where they were not played."""
        if granularity not in self.game.finer:
            return None
        evaluations, *losses = self.game.finer[granularity].tolist()
        return Planned(plans=lambda k: [], evaluations=int(evaluations), held_out=np.array(losses))

    def pruned(self) -> Planned | None:
        """Shapley values of leaving blocks out."""
        if self.game.pruned is None:
            return None
        return self.measured(self.play(self.game.pruned, payoff="prune"), "none")


def _linear(scores: Floats) -> Quadratic:
    return Quadratic(linear=scores, pair=np.zeros((len(scores), len(scores))))


ARMS: Mapping[str, Callable[[Bench], Planned | None]] = {
    "impq": lambda b: b.measured(b.full),
    "alpha_0": lambda b: b.measured(b.full, alpha=0.0),
    "alpha_1": lambda b: b.measured(b.full, alpha=1.0),
    "shapley": lambda b: b.measured(b.full, "none"),
    "precedence": lambda b: b.measured(b.full, "precedence"),
    "pairwise_ls": lambda b: b.measured(b.full, "pairwise_ls"),
    "ten_walks": lambda b: b.measured(replace(b, walks=10).full),
    "hundred_walks": lambda b: b.measured(replace(b, walks=100).full),
    "antithetic": lambda b: b.measured(b.antithetic, "precedence"),
    "antithetic_shapley": lambda b: b.measured(b.antithetic, "none"),
    "truncated": lambda b: b.measured(b.truncated, "precedence"),
    "truncated_shapley": lambda b: b.measured(b.truncated, "none"),
    "other_end": lambda b: b.measured(b.play(antithetic=True, depth=b.players // 2, direction="promote"), "precedence"),
    "aisec": lambda b: b.recommended(),
    "promote": lambda b: b.measured(b.play(direction="promote")),
    "prune": lambda b: b.pruned(),
    "group": lambda b: b.finer("group"),
    "linear": lambda b: b.finer("linear"),
    "isolated": lambda b: b.scored(baselines.isolated(b.value, b.players), b.players + 1),
    "isolated_promote": lambda b: b.scored(baselines.isolated_promote(b.value, b.players), b.players + 1),
    "isolated_long": lambda b: b.scored(b.game.scores.get("isolated_long"), b.players + 1),
    "greedy": lambda b: b.greedy(),
    "lim": lambda b: b.scored(b.game.scores.get("lim"), 1),
    "llm_mq": lambda b: b.scored(b.game.scores.get("llm_mq"), 1),
    "zd+": lambda b: b.scored(b.game.scores.get("zd+"), 0),
    "zd-": lambda b: b.scored(b.game.scores.get("zd-"), 0),
    "activation": lambda b: b.scored(b.game.scores.get("activation"), 1),
    "weight_error": lambda b: b.scored(b.game.scores.get("weight_error"), 0),
    "first_low": lambda b: b.scored(baselines.first_low(b.players), 0),
    "last_low": lambda b: b.scored(baselines.last_low(b.players), 0),
    "optimum": lambda b: Planned(plans=lambda k: [b.game.best(k)], evaluations=2**b.players),
    "shuffled_covariance": lambda b: b.shuffled_pairs("covariance"),
    "shuffled_precedence": lambda b: b.shuffled_pairs("precedence"),
    "shuffled": lambda b: b.shuffled(),
    "random": lambda b: Planned(plans=lambda k: [], evaluations=0),
}

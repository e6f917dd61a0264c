"""The paper's claims on games whose every plan is known: two trained language models, and planted pairwise games."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from aisec_common import Claim, Outcome, Scale, Study, TrialLog
from aisec_common.seeding import numpy_rng

from impq import baselines
from impq.assign import assign
from impq.game import Game
from impq.interaction import Quadratic, quadratic
from impq.play import play
from impq.spqe import Floats
from impq.table_games import PATTERNS, TableGame, kept_game, measured_game, planted_game
from impq.value import TableValue

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from impq.backend import GroupSize
    from impq.hf_embedded import EmbeddedTask

Plans = list[list[int]]  # the players at the low width, for each drawing of what is random in an arm
Quantisers = Mapping[str, "tuple[str, GroupSize]"]
DRAWS = 20
ROW_AND_TENSOR: Quantisers = {"row": ("rtn", "row"), "tensor": ("rtn", "tensor")}


@dataclass(frozen=True, kw_only=True)
class GamesScale(Scale):
    """Training steps of the two models, quantisers by name (backend, group size), and walks M of a game."""

    text_steps: int
    lookup_steps: int
    quantisers: Quantisers
    walks: int = 50


@dataclass(frozen=True)
class Bench:
    """One table game with what its arms share: the walks, each played when the first arm needs it."""

    game: TableGame
    seed: int
    walks: int

    def play(self, table: Floats | None = None, **changes: Any) -> Game:
        """The game estimated from calibration losses; truncated walks are as many as cost the same evaluations."""
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

    def rng(self, purpose: str, draw: int) -> np.random.Generator:
        return numpy_rng(self.seed, self.game.header.model_name, purpose, draw)

    def solve(self, *objectives: Quadratic | Floats) -> Callable[[int], Plans]:
        """k -> the best plan with k low players under each objective (scores alone are a linear one)."""
        quadratics = [
            o if isinstance(o, Quadratic) else Quadratic(linear=o, pair=np.zeros((len(o), len(o)))) for o in objectives
        ]
        ones = np.ones(self.players, dtype=np.int64)

        def plans(k: int) -> Plans:
            found = [assign(o.linear, o.pair, ones, self.players - k).low for o in quadratics]
            return [np.flatnonzero(low).tolist() for low in found]

        return plans

    def measured(self, name: str) -> Callable[[int], Plans] | None:
        """Plans of a baseline that needs a model; None in a planted game."""
        scores = self.game.scores.get(name)
        return None if scores is None else self.solve(scores)

    def wrong_pairs(self, game: Game, arm: str) -> list[Quadratic]:
        """The control of the pair terms: phi as estimated, the pairs of `arm` moved to other players."""
        found = []
        for draw in range(DRAWS // 4):
            pair, moved = quadratic(game, arm).pair, self.rng(f"wrong {arm}", draw).permutation(self.players)  # type: ignore[arg-type]
            pair = pair[np.ix_(moved, moved)]
            if arm == "covariance":
                linear = game.shapley - (pair.sum(axis=1) - np.diag(pair))
            else:  # a pairwise game has phi_i = a_i + half the row sum of I, and pair is I / 2
                linear = game.shapley - pair.sum(axis=1)
            found.append(Quadratic(linear=linear, pair=pair))
        return found


def _greedy(bench: Bench) -> Callable[[int], Plans]:
    order, _ = baselines.greedy_order(TableValue(bench.game.calibration), bench.players, bench.players)
    return lambda k: [sorted(int(step) for step in order[:k])]


def _pruned(bench: Bench) -> Callable[[int], Plans] | None:
    if bench.game.pruned is None:
        return None
    return bench.solve(bench.play(bench.game.pruned, payoff="prune").shapley)


def _shuffled(bench: Bench) -> list[Floats]:
    return [bench.rng("shuffled", draw).permutation(bench.full.shapley) for draw in range(DRAWS)]


ARMS: Mapping[str, Callable[[Bench], Callable[[int], Plans] | None]] = {
    "impq": lambda b: b.solve(quadratic(b.full)),
    "alpha_0": lambda b: b.solve(quadratic(b.full, alpha=0.0)),
    "alpha_1": lambda b: b.solve(quadratic(b.full, alpha=1.0)),
    "shapley": lambda b: b.solve(b.full.shapley),
    "precedence": lambda b: b.solve(quadratic(b.full, "precedence")),
    "pairwise_ls": lambda b: b.solve(quadratic(b.full, "pairwise_ls")),
    "ten_walks": lambda b: b.solve(quadratic(b.full.head(10))),
    "antithetic": lambda b: b.solve(quadratic(b.antithetic, "precedence")),
    "truncated": lambda b: b.solve(quadratic(b.truncated, "precedence")),
    "truncated_shapley": lambda b: b.solve(b.truncated.shapley),
    "promote": lambda b: b.solve(quadratic(b.play(direction="promote"))),
    "prune": _pruned,
    "isolated": lambda b: b.solve(baselines.isolated(TableValue(b.game.calibration), b.players)),
    "isolated_promote": lambda b: b.solve(baselines.isolated_promote(TableValue(b.game.calibration), b.players)),
    "isolated_long": lambda b: b.measured("isolated_long"),
    "greedy": _greedy,
    "lim": lambda b: b.measured("lim"),
    "llm_mq": lambda b: b.measured("llm_mq"),
    "zd+": lambda b: b.measured("zd+"),
    "zd-": lambda b: b.measured("zd-"),
    "activation": lambda b: b.measured("activation"),
    "weight_error": lambda b: b.measured("weight_error"),
    "first_low": lambda b: b.solve(baselines.first_low(b.players)),
    "last_low": lambda b: b.solve(baselines.last_low(b.players)),
    "optimum": lambda b: lambda k: [b.game.best(k)],
    "wrong_covariance": lambda b: b.solve(*b.wrong_pairs(b.full, "covariance")),
    "wrong_precedence": lambda b: b.solve(*b.wrong_pairs(b.full, "precedence")),
    "shuffled": lambda b: b.solve(*_shuffled(b)),
    "random": lambda b: lambda k: [],  # the mean over all plans is known
}


def prepare(seed: int, scale: GamesScale) -> dict[str, Bench]:
    """The games of one seed: a text model under each quantiser, a look-up model, three planted patterns."""

    @cache
    def text() -> EmbeddedTask:
        from impq.hf_embedded import text_task

        return text_task(seed, steps=scale.text_steps)

    def lookup() -> EmbeddedTask:
        from impq.hf_embedded import lookup_task

        return lookup_task(seed, steps=scale.lookup_steps)

    games = {
        f"text_{name}": _measured(text, backend, group_size, model="text", seed=seed, steps=scale.text_steps)
        for name, (backend, group_size) in scale.quantisers.items()
    }
    if scale.lookup_steps:
        games["lookup"] = _measured(lookup, "rtn", "tensor", model="lookup", seed=seed, steps=scale.lookup_steps)
    games |= {f"planted_{pattern}": planted_game(pattern, seed) for pattern in PATTERNS}
    return {name: Bench(game, seed, scale.walks) for name, game in games.items()}


def _measured(task: Callable[[], EmbeddedTask], backend: str, group_size: GroupSize, **recipe: Any) -> TableGame:
    recipe |= {"backend": backend, "group_size": group_size}
    return kept_game(recipe, lambda: measured_game(task(), backend=backend, group_size=group_size))


def trial(arm: str, benches: Mapping[str, Bench], seed: int, scale: GamesScale, log: TrialLog) -> dict[str, float]:
    """Regret of one arm's plans: v above the best plan with as many low players, by game, mean over their number.

    NAME: on held-out tokens, in nats per token, in planted games as a share of the random plan's; NAME.shallow and
    NAME.deep: up to half of the players low, and more; NAME.calibration: on the tokens of the estimate; text: mean over
    the text games; A_on_B: plans from quantiser A's game judged on B's.
    """
    found: dict[str, float] = {}
    texts = [name for name in benches if name.startswith("text_")]
    for done, (name, bench) in enumerate(benches.items()):
        log.data(name, np.stack([bench.game.calibration, bench.game.held_out]))
        plans_of = ARMS[arm](bench)
        if plans_of is None:
            continue
        sizes = range(1, bench.players)
        plans = {k: plans_of(k) for k in sizes}
        regrets = np.array([_regret(bench.game, k, plans[k]) for k in sizes])
        on_calibration = np.array([_regret(bench.game, k, plans[k], held_out=False) for k in sizes])
        unit = 1.0
        if name.startswith("planted"):
            unit = float(np.mean([bench.game.mean_regret(k) for k in sizes]))
        for k, regret in zip(sizes, regrets, strict=True):
            log.sample(f"{name}.{k}", regret=float(regret), low=plans[k][0] if plans[k] else [])
        shallow = np.array(sizes) <= bench.players // 2
        found |= {
            name: float(regrets.mean()) / unit,
            f"{name}.shallow": float(regrets[shallow].mean()) / unit,
            f"{name}.deep": float(regrets[~shallow].mean()) / unit,
            f"{name}.calibration": float(on_calibration.mean()) / unit,
        }
        for other in set(texts) - {name} if name in texts else ():
            moved = [_regret(benches[other].game, k, plans[k]) for k in sizes]
            found[f"{name}_on_{other}"] = float(np.mean(moved))
        log.progress(done + 1, len(benches))
    for part in ("", ".shallow", ".deep", ".calibration"):
        if texts and f"{texts[0]}{part}" in found:
            found[f"text{part}"] = float(np.mean([found[f"{name}{part}"] for name in texts]))
    return found


def _regret(game: TableGame, k: int, plans: Plans, *, held_out: bool = True) -> float:
    if not plans:
        return game.mean_regret(k, held_out=held_out)
    return float(np.mean([game.regret(low, held_out=held_out) for low in plans]))


def margin_growth(metrics: Mapping[str, Mapping[str, float]]) -> float:
    """How much wider the lead over LIM and LLM-MQ (their mean) is with many low blocks than with few, on text."""
    lead = {
        part: (metrics["lim"][f"text.{part}"] + metrics["llm_mq"][f"text.{part}"]) / 2 - metrics["impq"][f"text.{part}"]
        for part in ("deep", "shallow")
    }
    return lead["deep"] - lead["shallow"]


def regret_by_arm(outcomes: Mapping[int, Mapping[str, Outcome]]) -> Figure:
    """Mean regret of every arm on each kind of game over seeds, and the seeds themselves as dots, sorted by text."""
    from matplotlib.figure import Figure

    kinds = [k for k in ("text_row", "text_tensor", "lookup", "planted_positive") if any(
        k in outcome.metrics for by_arm in outcomes.values() for outcome in by_arm.values()
    )]  # fmt: skip
    arms = [arm for arm in ARMS if any(arm in by_arm for by_arm in outcomes.values())]

    def values(arm: str, kind: str) -> list[float]:
        return [by_arm[arm].metrics[kind] for by_arm in outcomes.values() if kind in by_arm[arm].metrics]

    arms.sort(key=lambda arm: float(np.mean(values(arm, kinds[0]) or [np.inf])), reverse=True)
    figure = Figure(figsize=(3.2 * len(kinds), 0.26 * len(arms) + 1), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        unit = "share of a random plan's" if kind.startswith("planted") else "nats per token"
        axes.set(title=kind, xlabel=f"regret, {unit}")
        axes.set_xscale("symlog", linthresh=1e-3)
        axes.set_xlim(left=0)
        axes.grid(axis="x", alpha=0.3)
        for y, arm in enumerate(arms):
            seeds = values(arm, kind)
            axes.plot(seeds, [y] * len(seeds), "o", color="C7", markersize=3, alpha=0.6)
            axes.plot([np.mean(seeds)] if seeds else [], [y] if seeds else [], "|", color="C3", markersize=12)
    panels[0].set_yticks(range(len(arms)), arms, fontsize="small")
    return figure


def _less_regret(text: str, metric: str, arm: str, over: str, control: str, paper: str = "") -> Claim:
    return Claim(text=text, metric=metric, lower_is_better=True, arm=arm, over=over, control=control, paper=paper)


STUDY = Study(
    room="impq",
    trial=trial,
    prepare=prepare,
    arms=tuple(ARMS),
    scales={
        "quick": GamesScale(
            seeds=3, text_steps=100, lookup_steps=0, quantisers={"tensor": ("rtn", "tensor")}
        ),
        "standard": GamesScale(seeds=8, text_steps=600, lookup_steps=800, quantisers=ROW_AND_TENSOR),
        "full": GamesScale(
            seeds=8,
            text_steps=600,
            lookup_steps=800,
            quantisers={**ROW_AND_TENSOR, "gptq": ("gptq", 32), "hqq": ("hqq", 32), "quanto": ("quanto", 32)},
        ),
    },
    figures=(regret_by_arm,),
    claims=(
        _less_regret(
            "its plans beat z-scores of the weights (text)", "text", "impq", "zd+", "shuffled",
            paper="20 to 80 % lower perplexity than the best baseline",
        ),
        _less_regret("its plans beat activation norms (text)", "text", "impq", "activation", "shuffled"),
        _less_regret("its plans beat plans drawn at random (text)", "text", "impq", "random", "shuffled"),
        _less_regret("its plans beat LLM-MQ (text)", "text", "impq", "llm_mq", "shuffled"),
        _less_regret("its plans beat LIM (text)", "text", "impq", "lim", "shuffled"),
        _less_regret("its plans beat isolated sensitivities (text)", "text", "impq", "isolated", "shuffled"),
        _less_regret(
            "its plans beat isolated sensitivities (planted, positive)",
            "planted_positive", "impq", "isolated", "shuffled",
        ),
        _less_regret(
            "the covariance term improves on Shapley values alone (text)", "text", "impq", "shapley", "wrong_covariance"
        ),
        _less_regret(
            "the covariance term improves on Shapley values alone (planted, positive)",
            "planted_positive", "impq", "shapley", "wrong_covariance",
        ),
        _less_regret(
            "precedence interactions improve on Shapley values alone (text)",
            "text", "precedence", "shapley", "wrong_precedence",
        ),
        _less_regret(
            "precedence interactions improve on Shapley values alone (look-up)",
            "lookup", "precedence", "shapley", "wrong_precedence",
        ),
        _less_regret(
            "precedence interactions improve on Shapley values alone (planted, positive)",
            "planted_positive", "precedence", "shapley", "wrong_precedence",
        ),
        Claim(
            text="the lead over LIM and LLM-MQ grows as bits fall (text)",
            effect=margin_growth,
            arm="impq",
            control="shuffled",
            paper="margin grows as bits fall",
        ),
        _less_regret(
            "truncated walks beat full ones at 3 average bits and more, at equal evaluations (text)",
            "text.shallow", "truncated", "antithetic", "shuffled",
        ),
    ),
)  # fmt: skip

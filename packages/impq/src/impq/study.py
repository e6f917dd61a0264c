"""The paper's claims on games whose every plan is known: two trained language models, and planted pairwise games."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from aisec_common import Claim, Outcome, Scale, Study, TrialLog

from impq.arms import ARMS, Bench, Planned
from impq.backend import LIBRARIES
from impq.corpus import python_documentation
from impq.spqe import Floats
from impq.table_games import PATTERNS, TableGame, kept_game, measured_game, planted_game

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from impq.backend import GroupSize
    from impq.blocks import Granularity
    from impq.hf_embedded import EmbeddedTask

Quantisers = Mapping[str, "tuple[str, GroupSize]"]
FINER: tuple[Granularity, ...] = ("group", "linear")
BLOCKS = tuple(arm for arm in ARMS if arm not in FINER)
ROW_AND_TENSOR: Quantisers = {"row": ("rtn", "row"), "tensor": ("rtn", "tensor")}


@dataclass(frozen=True, kw_only=True)
class GamesScale(Scale):
    """Training steps of the two models, windows of calibration text, quantisers by name (backend, group size), walks M.

    A quantiser whose library is not installed is left out. Finer granularities are played on the text model itself.
    """

    text_steps: int
    lookup_steps: int
    quantisers: Quantisers
    windows: int = 16
    walks: int = 50
    granularities: tuple[Granularity, ...] = ()


def prepare(seed: int, scale: GamesScale) -> dict[str, Bench]:
    """The games of one seed: a text model under each quantiser, a look-up model, three planted patterns."""

    @cache
    def text() -> EmbeddedTask:
        from impq.hf_embedded import text_task

        return text_task(seed, steps=scale.text_steps, windows=scale.windows)

    def lookup() -> EmbeddedTask:
        from impq.hf_embedded import lookup_task

        return lookup_task(seed, steps=scale.lookup_steps)

    games = {
        f"text_{name}": _measured(
            text,
            backend,
            group_size,
            scale.granularities,
            model="text",
            seed=seed,
            steps=scale.text_steps,
            windows=scale.windows,
        )
        for name, (backend, group_size) in scale.quantisers.items()
        if find_spec(LIBRARIES.get(backend, "torch"))
    }
    if scale.lookup_steps:
        games["lookup"] = _measured(lookup, "rtn", "tensor", (), model="lookup", seed=seed, steps=scale.lookup_steps)
    games |= {f"planted_{pattern}": planted_game(pattern, seed) for pattern in PATTERNS}
    return {name: Bench(game, seed, scale.walks) for name, game in games.items()}


def _measured(
    task: Callable[[], EmbeddedTask],
    backend: str,
    group_size: GroupSize,
    granularities: Sequence[Granularity],
    **recipe: Any,
) -> TableGame:
    recipe |= {"backend": backend, "group_size": group_size, "granularities": list(granularities)}
    return kept_game(
        recipe,
        lambda: measured_game(task(), backend=backend, group_size=group_size, granularities=granularities),
    )


def trial(arm: str, benches: Mapping[str, Bench], seed: int, scale: GamesScale, log: TrialLog) -> dict[str, float]:
    """Regret of one arm's plans: v above the best plan with as many low players, by game, mean over their number.

    NAME: on held-out tokens, in nats per token, in planted games as a share of the random plan's; NAME.shallow and
    NAME.deep: up to half of the players low, and more; NAME.calibration: on the tokens of the estimate;
    NAME.evaluations: coalitions measured; text: mean over RTN per row and per tensor (at scale quick the latter alone);
    A_on_B: plans from quantiser A's game judged on B's.
    """
    log.data("python_documentation", "\0".join(python_documentation().values()))
    found: dict[str, float] = {}
    texts = [name for name in benches if name.startswith("text_")]
    for done, (name, bench) in enumerate(benches.items()):
        log.data(name, np.stack([bench.game.calibration, bench.game.held_out]))
        planned = ARMS[arm](bench)
        if planned is None:
            continue
        sizes = np.arange(1, bench.players)
        regrets = _regrets(planned, bench.game)
        parts = {"": sizes > 0, ".shallow": sizes <= bench.players // 2, ".deep": sizes > bench.players // 2}
        chance = np.ones(len(sizes))
        if name.startswith("planted"):
            chance = np.array([bench.game.mean_regret(k) for k in sizes.tolist()])
        found |= {f"{name}{part}": float(regrets[of].sum() / chance[of].sum()) for part, of in parts.items()}
        found[f"{name}.evaluations"] = float(planned.evaluations)
        for k, regret in zip(sizes.tolist(), regrets, strict=True):
            log.sample(f"{name}.{k}", regret=float(regret), low=next(iter(planned.plans(k)), []))
        if planned.held_out is None:
            found[f"{name}.calibration"] = float(_regrets(planned, bench.game, held_out=False).sum() / chance.sum())
            for other in set(texts) - {name} if name in texts else ():
                found[f"{name}_on_{other}"] = float(_regrets(planned, benches[other].game).mean())
        log.progress(done + 1, len(benches))
    both = [f"text_{name}" for name in ROW_AND_TENSOR if f"text_{name}" in found]
    for part in ("", ".shallow", ".deep", ".calibration"):
        if both and all(f"{name}{part}" in found for name in both):
            found[f"text{part}"] = float(np.mean([found[f"{name}{part}"] for name in both]))
    return found


def _regrets(planned: Planned, game: TableGame, *, held_out: bool = True) -> Floats:
    """Regret by number of low players, mean over draws; over all plans where an arm has none of its own."""
    sizes = range(1, len(game.header.players))
    if planned.held_out is not None:
        best = np.array([game.held_out[game.sizes == k].min() for k in sizes])
        return np.asarray(planned.held_out - best)
    return np.array(
        [
            np.mean([game.regret(low, held_out=held_out) for low in drawn])
            if (drawn := planned.plans(k))
            else game.mean_regret(k, held_out=held_out)
            for k in sizes
        ]
    )


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

    def values(arm: str, kind: str) -> list[float]:
        found = [by_arm[arm].metrics for by_arm in outcomes.values() if arm in by_arm]
        return [metrics[kind] for metrics in found if kind in metrics]

    shown = ("text_row", "text_tensor", "lookup", "planted_positive")
    kinds = [kind for kind in shown if any(values(arm, kind) for arm in ARMS)]
    arms = [arm for arm in ARMS if values(arm, kinds[0])]
    arms.sort(key=lambda arm: float(np.mean(values(arm, kinds[0]))), reverse=True)
    figure = Figure(figsize=(3.2 * len(kinds), 0.26 * len(arms) + 1), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        unit = "share of a random plan's" if kind.startswith("planted") else "nats per token"
        axes.set(title=kind, xlabel=f"regret, {unit}")
        axes.set_xscale("symlog", linthresh=1e-3)
        axes.grid(axis="x", alpha=0.3)
        for y, arm in enumerate(arms):
            seeds = values(arm, kind)
            axes.plot(seeds, [y] * len(seeds), "o", color="C7", markersize=3, alpha=0.6)
            axes.plot([np.mean(seeds)] if seeds else [], [y] if seeds else [], "|", color="C3", markersize=12)
        axes.set_xlim(left=0)
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
            seeds=3, arms=BLOCKS, text_steps=60, lookup_steps=0, windows=8, quantisers={"tensor": ("rtn", "tensor")}
        ),
        "standard": GamesScale(
            seeds=8, arms=BLOCKS, text_steps=600, lookup_steps=800, quantisers=ROW_AND_TENSOR
        ),
        "full": GamesScale(
            seeds=8,
            text_steps=600,
            lookup_steps=800,
            granularities=FINER,
            quantisers={**ROW_AND_TENSOR, "gptq": ("gptq", 32), "hqq": ("hqq", 32), "quanto": ("quanto", 32)},
        ),
    },
    figures=(regret_by_arm,),
    claims=(
        _less_regret(
            "its plans beat z-scores of the weights, more outliers kept (text)", "text", "impq", "zd+", "shuffled",
            paper="20 to 80 % lower perplexity than the best baseline",
        ),
        _less_regret("its plans beat z-scores of the weights, fewer kept (text)", "text", "impq", "zd-", "shuffled"),
        _less_regret("its plans beat activation norms (text)", "text", "impq", "activation", "shuffled"),
        _less_regret("its plans beat plans drawn at random (text)", "text", "impq", "random", "shuffled"),
        _less_regret("its plans beat LLM-MQ (text)", "text", "impq", "llm_mq", "shuffled"),
        _less_regret("its plans beat LIM (text)", "text", "impq", "lim", "shuffled"),
        _less_regret(
            "its plans beat isolated sensitivities (text)", "text", "impq", "isolated", "isolated_long"
        ),
        _less_regret(
            "its plans beat isolated sensitivities (planted, positive)",
            "planted_positive", "impq", "isolated", "shuffled",
        ),
        _less_regret(
            "the covariance term improves on Shapley values alone (text)",
            "text", "impq", "shapley", "shuffled_covariance",
        ),
        _less_regret(
            "the covariance term improves on Shapley values alone (planted, positive)",
            "planted_positive", "impq", "shapley", "shuffled_covariance",
        ),
        _less_regret(
            "precedence interactions improve on Shapley values alone (text)",
            "text", "precedence", "shapley", "shuffled_precedence",
        ),
        _less_regret(
            "precedence interactions improve on Shapley values alone (look-up)",
            "lookup", "precedence", "shapley", "shuffled_precedence",
        ),
        _less_regret(
            "precedence interactions improve on Shapley values alone (planted, positive)",
            "planted_positive", "precedence", "shapley", "shuffled_precedence",
        ),
        Claim(
            text="the lead over LIM and LLM-MQ grows as bits fall (text)",
            effect=margin_growth,
            arm="impq",
            control="shuffled",
            paper="margin grows as bits fall",
        ),
        _less_regret(
            "truncated walks beat as many full steps at 3 average bits and more (text)",
            "text.shallow", "truncated", "antithetic", "other_end",
        ),
    ),
)  # fmt: skip

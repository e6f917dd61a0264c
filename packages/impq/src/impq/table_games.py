"""Games whose value is known for every coalition: those of the embedded models, and planted pairwise ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from aisec_common.data.cache import cache_folder
from aisec_common.files import write_atomic
from aisec_common.seeding import numpy_rng
from aisec_common.study import content_hash
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from impq.baselines import isolated
from impq.budget import Budget
from impq.header import GameHeader
from impq.plan import solve
from impq.play import play
from impq.player import Player
from impq.spqe import Floats
from impq.value import exhaustive

if TYPE_CHECKING:
    from impq.backend import GroupSize
    from impq.blocks import Granularity
    from impq.hf_embedded import EmbeddedTask

Pattern = Literal["positive", "chain", "signed"]
PATTERNS: tuple[Pattern, ...] = ("positive", "chain", "signed")
MEASURES = (  # the modules whose code decides a table; others may change without measuring anew
    "backend", "baselines", "blocks", "corpus", "estimate", "gptq_backend", "hf_embedded", "hf_model", "hidden_states",
    "hqq_backend", "quantized_linear", "quanto_backend", "rtn_backend", "runner", "scores", "table_games", "weights",
)  # fmt: skip
FINER = "finer "  # begins the names of such arrays in a file
PLANTED = 12  # players of a planted game


@dataclass(frozen=True, kw_only=True)
class TableGame:
    """A game with its whole value table: plans are made on one set of tokens and judged on another.

    Attributes:
        header: what the game is; `v_high` and `v_low` are the table's ends.
        calibration: v of every coalition (2^L,), indexed by its bit set, on the tokens the game is estimated on.
        held_out: the same on other tokens.
        scores: baselines that need the model, by name, (L,) each, the higher the more demotion hurts.
        pruned: `calibration` with low blocks left out instead of quantised; None where it was not measured.
        finer: granularity -> evaluations of a game of finer players, then the held-out losses of its plans at the
            average bits of 1, ..., L - 1 low blocks, (L,).
    """

    header: GameHeader
    calibration: Floats
    held_out: Floats
    scores: Mapping[str, Floats] = field(default_factory=dict)
    pruned: Floats | None = None
    finer: Mapping[str, Floats] = field(default_factory=dict)

    @cached_property
    def sizes(self) -> NDArray[np.integer]:
        """Number of low players of every coalition (2^L,)."""
        return np.array([coalition.bit_count() for coalition in range(len(self.held_out))])

    def regret(self, low: Sequence[int], *, held_out: bool = True) -> float:
        """v of the plan with the players `low` less that of the best plan with as many, in nats per token."""
        table = self.held_out if held_out else self.calibration
        return float(table[sum(1 << player for player in low)] - table[self.sizes == len(low)].min())

    def mean_regret(self, size: int, *, held_out: bool = True) -> float:
        """The regret that a plan drawn at random among those with `size` low players has on average."""
        values = (self.held_out if held_out else self.calibration)[self.sizes == size]
        return float(values.mean() - values.min())

    def best(self, size: int) -> list[int]:
        """The low players of the best plan of that size on calibration tokens."""
        coalitions = np.flatnonzero(self.sizes == size)
        coalition = int(coalitions[self.calibration[coalitions].argmin()])
        return [player for player in range(len(self.header.players)) if coalition >> player & 1]


def measured_game(
    task: EmbeddedTask,
    *,
    group_size: GroupSize,
    backend: str = "rtn",
    granularities: Sequence[Granularity] = (),
    walks: int = 50,
) -> TableGame:
    """Every coalition of an embedded task's blocks at 4 or 2 bit, and the baselines' scores.

    Args:
        task: the trained model with its tokens.
        group_size: of the quantiser.
        backend: which quantiser.
        granularities: finer players whose games are played as well, in antithetic full walks.
        walks: of such a game.
    """
    from impq.estimate import model_game
    from impq.scores import SCORES

    def finer(granularity: Granularity) -> Floats:
        fine = game_of(task.model, task.calibration, granularity=granularity)
        played = play(fine.value, replace(fine.header, antithetic=True), walks, schedule="walk")
        high, low = fine.header.bits
        budgets = [Budget(avg_bits=high - (high - low) * k / players) for k in range(1, players)]
        plans = [solve(played, budget, interaction="precedence") for budget in budgets]
        losses = fine.on(task.held_out).value([plan.coalition for plan in plans])
        return np.array([played.n_evaluations, *losses])

    game_of = partial(model_game, backend=backend, group_size=group_size, weights="resident", name=task.name)
    game = game_of(task.model, task.calibration)
    pruning = game_of(task.model, task.calibration, payoff="prune")
    players = len(game.header.players)
    table = exhaustive(game.value, players)
    return TableGame(
        header=replace(game.header, v_high=float(table[0]), v_low=float(table[-1])),
        calibration=table,
        held_out=exhaustive(game.on(task.held_out).value, players),
        pruned=exhaustive(pruning.value, players),
        scores={
            "isolated_long": isolated(game.on(task.calibration_long).value, players),
            **{name: game.score(name) for name in SCORES},
        },
        finer={granularity: finer(granularity) for granularity in granularities},
    )


def kept_game(recipe: Mapping[str, Any], measure: Callable[[], TableGame]) -> TableGame:
    """The game that `recipe` led to earlier, from the user's cache, or what `measure` gives now.

    Versions of the libraries and the code that measures are added to the recipe.

    Args:
        recipe: values that JSON can hold and that decide the game.
        measure: trains and measures it.
    """
    names = ["numpy", "torch", "transformers", "tokenizers"]
    names += {"hqq": ["hqq"], "quanto": ["optimum-quanto"]}.get(str(recipe.get("backend")), [])
    libraries = {name: version(name) for name in names}
    code = [(Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8") for module in MEASURES]
    told = json.dumps({**recipe, **libraries, "python": sys.version, "code": code}, sort_keys=True)
    file = cache_folder() / "tables" / f"impq-{content_hash(told)[:16]}.safetensors"
    if not file.is_file():
        game = measure()
        tables = {"calibration": game.calibration, "held_out": game.held_out, **game.scores}
        tables |= {f"{FINER}{granularity}": losses for granularity, losses in game.finer.items()}
        if game.pruned is not None:
            tables["pruned"] = game.pruned
        arrays = {name: np.ascontiguousarray(table, dtype=np.float64) for name, table in tables.items()}
        write_atomic(file, save(arrays, metadata={"header": json.dumps(game.header.to_json())}))
    with safe_open(file, framework="numpy") as opened:
        header = GameHeader.from_json(json.loads(opened.metadata()["header"]))
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it is no mapping)
    calibration, held_out, pruned = arrays.pop("calibration"), arrays.pop("held_out"), arrays.pop("pruned", None)
    finer = {name.removeprefix(FINER): arrays.pop(name) for name in list(arrays) if name.startswith(FINER)}
    return TableGame(
        header=header, calibration=calibration, held_out=held_out, scores=arrays, pruned=pruned, finer=finer
    )


def planted_game(pattern: Pattern, seed: int, *, strength: float = 1.0, players: int = PLANTED) -> TableGame:
    """A pairwise game v(q) = sum_i a_i q_i + sum_{i<j} I_ij q_i q_j, a_i uniform in [.5, 1.5].

    I is scaled so that half its mean absolute row sum is `strength` times the mean of a.

    Args:
        pattern: `positive`, all pairs compound; `chain`, neighbours only, positive; `signed`, all pairs, both signs.
        seed: of a and I.
        strength: of the interactions; 0 plants an additive game.
        players: L, 2 to 20.

    Raises:
        ValueError: for an unknown pattern, or a number of players out of range.

    >>> game = planted_game("chain", 0, players=3)
    >>> game.calibration.shape, float(game.calibration[0]), game.regret(game.best(2))
    ((8,), 0.0, 0.0)
    """
    if pattern not in PATTERNS:
        raise ValueError(f"pattern must be one of {', '.join(PATTERNS)}, got {pattern!r}")
    if not 2 <= players <= 20:
        raise ValueError(f"players must lie in 2..20 to have a table of all plans, got {players}")
    rng = numpy_rng(seed, "planted", pattern)
    a = rng.uniform(0.5, 1.5, size=players)
    pairs = np.triu(rng.exponential(size=(players, players)), 1)
    if pattern == "chain":
        pairs = np.triu(np.tril(pairs, 1), 1)
    elif pattern == "signed":
        pairs *= rng.choice([-1.0, 1.0], size=pairs.shape)
    pairs *= strength * a.mean() * 2 * players / np.abs(pairs + pairs.T).sum()
    q = (np.arange(1 << players)[:, None] >> np.arange(players) & 1).astype(float)
    table = q @ a + np.einsum("ci,ij,cj->c", q, pairs, q, optimize=True)
    header = GameHeader(
        model_name=f"planted {pattern}",
        model_hash=content_hash(table),
        calib_hash="",
        backend="planted",
        bits=(4, 2),
        group_size=None,
        granularity="block",
        players=tuple(
            Player(name=str(i), block=i, modules=(f"{i}.weight",), shapes=((8, 8),), nbytes=(32, 16))
            for i in range(players)
        ),
        other_bytes=0,
        n_tokens=1,
        v_high=float(table[0]),
        v_low=float(table[-1]),
    )
    return TableGame(header=header, calibration=table, held_out=table)

"""The bit plan: which player gets how many bits, and how that was decided."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from aisec_common import env
from aisec_common.files import write_atomic
from numpy.typing import ArrayLike

from impq.assign import Assignment, assign
from impq.budget import Budget
from impq.exchange import Flags
from impq.game import Game, GameHeader
from impq.interaction import Interaction, Quadratic, quadratic
from impq.player import Player

SCHEMA = "impq-plan/1"
Z_95 = 1.96
STATUSES = ("optimal", "time_limit", "uniform", "given")


@cache
def _versions() -> Mapping[str, str]:
    return env.versions("aisec-impq")


@dataclass(frozen=True, kw_only=True)
class BitPlan:
    """A width for every player of a model.

    Attributes:
        model_name, model_hash: of the full-precision model.
        backend, group_size: of the quantiser whose bytes were counted.
        granularity: what a player is.
        widths: that were available, from high to low.
        players: see `Player`.
        levels: index into `widths` of each player.
        other_bytes: bytes of the model that are not quantised.
        budget: that the plan keeps.
        interaction, alpha: of the objective; None where scores or the user decided.
        predicted_loss: modelled loss above all high, in `loss_unit`; None where nothing predicts it.
        loss_unit: of the game.
        status: "optimal" if proven, "time_limit" if not, "uniform" if the budget leaves no choice or needs none (all
            players at one end), "given" for plans from elsewhere.
        gap, bound, seconds: of the solver, in the units of what it minimised; None for given plans.
        game_sha256: of the game it was made from, if any.
        versions: of Python and the libraries that made it.

    Raises:
        ValueError: if levels do not fit players and widths.

    >>> player = Player(name="0", block=0, modules=("0",), shapes=((4, 8),), nbytes=(36, 26))
    >>> plan = BitPlan(model_name="m", model_hash="", backend="rtn", group_size=4, granularity="linear", widths=(4, 2),
    ...     players=(player,), levels=(1,), other_bytes=100, budget=Budget(avg_bits=2.0))
    >>> plan.bits, plan.bytes, plan.avg_bits
    ({'0': 2}, 126, 2.0)
    """

    model_name: str
    model_hash: str
    backend: str
    group_size: int | str | None
    granularity: str
    widths: tuple[int, ...]
    players: tuple[Player, ...]
    levels: tuple[int, ...]
    other_bytes: int
    budget: Budget
    interaction: str | None = None
    alpha: float | None = None
    predicted_loss: float | None = None
    loss_unit: str = "nats/token"
    status: str = "given"
    gap: float | None = None
    bound: float | None = None
    seconds: float | None = None
    game_sha256: str | None = None
    versions: Mapping[str, str] = field(default_factory=_versions)

    def __post_init__(self) -> None:
        if len(self.levels) != len(self.players):
            raise ValueError(f"levels has {len(self.levels)} entries for {len(self.players)} players")
        if any(not 0 <= level < len(self.widths) for level in self.levels):
            raise ValueError(f"levels must lie in 0..{len(self.widths) - 1}, the places of the widths {self.widths}")
        if any(len(player.nbytes) != len(self.widths) for player in self.players):
            raise ValueError(f"players must have one size for each of the widths {self.widths}")
        if self.status not in STATUSES:
            raise ValueError(f"status is {self.status!r}; it must be one of {', '.join(STATUSES)}")

    @cached_property
    def bits(self) -> dict[str, int]:
        """Width of each player by name."""
        return {p.name: self.widths[level] for p, level in zip(self.players, self.levels, strict=True)}

    @cached_property
    def module_bits(self) -> dict[str, int]:
        """Width of each linear module by its name in the model."""
        return {module: self.bits[player.name] for player in self.players for module in player.modules}

    @property
    def quantised_bytes(self) -> int:
        """Bytes of the quantised parts, scales and zeros included."""
        return sum(player.nbytes[level] for player, level in zip(self.players, self.levels, strict=True))

    @property
    def bytes(self) -> int:
        """Bytes of the whole model under this plan."""
        return self.quantised_bytes + self.other_bytes

    @property
    def avg_bits(self) -> float:
        """Nominal bits averaged over the quantised weights."""
        weights = [player.weights for player in self.players]
        return float(np.average([self.widths[level] for level in self.levels], weights=weights))

    @property
    def coalition(self) -> int:
        """The plan as a coalition of the game: bit k set where demotion step k is taken."""
        per_player = len(self.widths) - 1
        return sum(((1 << level) - 1) << (player * per_player) for player, level in enumerate(self.levels))

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON values, schema impq-plan/1."""
        players = [
            {**player.to_json(), "bits": self.widths[level], "bytes": player.nbytes[level]}
            for player, level in zip(self.players, self.levels, strict=True)
        ]
        return {
            "schema": SCHEMA,
            "model": {"name": self.model_name, "sha256": self.model_hash},
            "backend": self.backend,
            "granularity": self.granularity,
            "bits": list(self.widths),
            "group_size": self.group_size,
            "players": players,
            "budget": self.budget.to_json(),
            "bytes": {"quantised": self.quantised_bytes, "whole_model": self.bytes},
            "objective": {
                "interaction": self.interaction,
                "alpha": self.alpha,
                "predicted_delta_nll": self.predicted_loss,
                "loss_unit": self.loss_unit,
            },
            "solver": {"status": self.status, "gap": self.gap, "bound": self.bound, "seconds": self.seconds},
            "game_sha256": self.game_sha256,
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BitPlan:
        """The plan that `to_json` wrote.

        Raises:
            ValueError: in one line, if a field is missing, wrong, or contradicts another.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            raise ValueError(f"plan: not of schema {SCHEMA}; make it with `impq plan`")
        try:
            widths = tuple(int(width) for width in data["bits"])
            for entry in data["players"]:
                if entry["bits"] not in widths:
                    raise ValueError(f"plan: {entry['name']} has {entry['bits']} bits, not one of {widths}")
            plan = cls(
                model_name=data["model"]["name"],
                model_hash=data["model"]["sha256"],
                backend=data["backend"],
                group_size=data["group_size"],
                granularity=data["granularity"],
                widths=widths,
                players=tuple(Player.from_json(entry) for entry in data["players"]),
                levels=tuple(widths.index(entry["bits"]) for entry in data["players"]),
                other_bytes=int(data["bytes"]["whole_model"]) - int(data["bytes"]["quantised"]),
                budget=Budget(**data["budget"]),
                interaction=data["objective"]["interaction"],
                alpha=data["objective"]["alpha"],
                predicted_loss=data["objective"]["predicted_delta_nll"],
                loss_unit=data["objective"]["loss_unit"],
                status=data["solver"]["status"],
                gap=data["solver"]["gap"],
                bound=data["solver"]["bound"],
                seconds=data["solver"]["seconds"],
                game_sha256=data["game_sha256"],
                versions=data["versions"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"plan: cannot be read ({error!r}); expected the fields of {SCHEMA}") from None
        if plan.quantised_bytes != data["bytes"]["quantised"]:
            raise ValueError(
                f"plan: its players take {plan.quantised_bytes} bytes, but bytes.quantised is "
                f"{data['bytes']['quantised']}; the file was edited by hand"
            )
        return plan

    def save(self, path: Path | str) -> None:
        """Writes the plan as JSON, atomically."""
        write_atomic(Path(path), json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> BitPlan:
        """The plan in a file.

        Raises:
            ValueError: in one line naming the file, if it is missing or no valid plan.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text()))
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror}); give the file of a plan") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not valid JSON ({error})") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def solve(
    game: Game,
    budget: Budget,
    *,
    interaction: Interaction = "covariance",
    alpha: float = 0.5,
    scores: ArrayLike | None = None,
    time_limit: float = 10.0,
) -> BitPlan:
    """The plan of least modelled loss within a budget: min a.q + q'K q s.t. sum_k c_k (1 - q_k) <= capacity.

    A budget of all high or more gives all high, and one that leaves nothing above all low gives all low; neither calls
    the solver.

    Args:
        game: measured losses.
        budget: what the plan may use.
        interaction, alpha: the model of the loss, see `quadratic`.
        scores: (steps,) in place of the measured losses, higher = demotion hurts more: other methods through the same
            solver. Such a plan predicts no loss.
        time_limit: seconds.

    Returns:
        The plan with status, bound and gap.

    Raises:
        ValueError: if the budget is infeasible, scores have another shape, or the game does not allow `interaction`.

    Source: arXiv 2509.15455, binary quadratic programme; bound and solver are ours.

    >>> from impq.play import play
    >>> from impq.table_games import planted_game
    >>> from impq.value import TableValue
    >>> planted = planted_game("positive", seed=0, players=4)
    >>> game = play(TableValue(planted.calibration), planted.header, n_permutations=20)
    >>> plan = solve(game, Budget(avg_bits=3.0), interaction="precedence")
    >>> sorted(plan.bits.values()), plan.status
    ([2, 2, 4, 4], 'optimal')
    """
    header = game.header
    if scores is None:
        model = quadratic(game, interaction, alpha)
    else:
        linear = np.asarray(scores, dtype=float)
        if linear.shape != (header.walks.steps,):
            raise ValueError(f"scores has shape {linear.shape}; give one per demotion step, {header.walks.steps}")
        model = Quadratic(linear=linear, pair=np.zeros((len(linear), len(linear))))
    found = _minimise(header, budget, model.linear, model.pair, time_limit)
    end = _end(header, budget)
    measured = scores is None
    return _plan(
        header,
        found.low,
        budget,
        interaction=interaction if measured else None,
        alpha=alpha if measured and interaction == "covariance" else None,
        predicted_loss=found.objective if measured else None,
        status=found.status if end is None else "uniform",
        gap=found.gap,
        bound=found.bound,
        seconds=found.seconds,
        game_sha256=game.sha256,
    )


def plan_of(header: GameHeader, low: ArrayLike, budget: Budget) -> BitPlan:
    """The plan that takes given demotion steps, for plans from elsewhere: greedy, random, written by hand.

    Args:
        header: of the game that knows players and sizes.
        low: flags (steps,) of the steps taken.
        budget: that the plan is to keep.

    Raises:
        ValueError: if `low` has another shape, skips a step of a player, or exceeds the budget.
    """
    taken = np.asarray(low, dtype=bool)
    if taken.shape != (header.walks.steps,):
        raise ValueError(f"low has shape {taken.shape}; give one flag per demotion step, {header.walks.steps}")
    over = int(budget.costs(header.players, header.bits)[~taken].sum()) - _capacity(header, budget)
    if over > 0:
        raise ValueError(f"low exceeds the budget by {over} of its units; take more steps or raise the budget")
    return _plan(header, taken, budget)


def settled(
    game: Game,
    budgets: Sequence[Budget],
    *,
    interaction: Interaction = "covariance",
    alpha: float = 0.5,
    time_limit: float = 10.0,
) -> bool:
    """Whether no plan for the budgets changes while the Shapley values move within +-1.96 standard errors.

    A plan stays the best for all such values if it does for the worst ones: its low steps 1.96 SE dearer, the others
    1.96 SE cheaper. Interactions are kept as estimated.

    Args:
        game: measured so far.
        budgets: for which plans are wanted.
        interaction, alpha, time_limit: as for `solve`.

    Returns:
        True only if each plan is proven best for the estimates and for the worst values.
    """
    model = quadratic(game, interaction, alpha)
    error = Z_95 * game.stderr
    if not np.isfinite(error).all():
        return False
    for budget in budgets:
        if _end(game.header, budget) is not None:
            continue
        found = _minimise(game.header, budget, model.linear, model.pair, time_limit)
        worst = model.linear + np.where(found.low, error, -error)
        again = _minimise(game.header, budget, worst, model.pair, time_limit)
        if {found.status, again.status} != {"optimal"} or not np.array_equal(found.low, again.low):
            return False
    return True


def _minimise(header: GameHeader, budget: Budget, linear: Any, pair: Any, time_limit: float) -> Assignment:
    end = _end(header, budget)
    if end is not None:
        value = float(linear[end].sum() + pair[np.ix_(end, end)].sum())
        return Assignment(low=end, objective=value, bound=value, gap=0.0, status="optimal", seconds=0.0)
    costs = budget.costs(header.players, header.bits)
    return assign(linear, pair, costs, _capacity(header, budget), widths=len(header.bits), time_limit=time_limit)


def _capacity(header: GameHeader, budget: Budget) -> int:
    return budget.capacity(header.players, header.bits, header.other_bytes)


def _end(header: GameHeader, budget: Budget) -> Flags | None:
    """The plan with all players at one end, if the budget leaves no choice or needs none; else None."""
    costs, capacity = budget.costs(header.players, header.bits), _capacity(header, budget)
    if capacity >= costs.sum():
        return np.zeros(len(costs), dtype=bool)
    if capacity < costs.min():
        return np.ones(len(costs), dtype=bool)
    return None


def _plan(header: GameHeader, low: Flags, budget: Budget, **decided: Any) -> BitPlan:
    by_player = low.reshape(len(header.players), -1)
    if (by_player[:, 1:] & ~by_player[:, :-1]).any():
        raise ValueError("low takes a later step of a player without the earlier one")
    return BitPlan(
        model_name=header.model_name,
        model_hash=header.model_hash,
        backend=header.backend,
        group_size=header.group_size,
        granularity=header.granularity,
        widths=header.bits,
        players=header.players,
        levels=tuple(int(level) for level in by_player.sum(axis=1)),
        other_bytes=header.other_bytes,
        budget=budget,
        loss_unit=header.loss_unit,
        **decided,
    )

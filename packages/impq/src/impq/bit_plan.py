"""The bit plan: which player gets how many bits, how that was decided, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from aisec_common import env
from aisec_common.files import write_atomic

from impq.budget import ROUNDING, Budget
from impq.player import Player

SCHEMA = "impq-plan/1"
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
        sequential: whether a backend with Hessians was given those of already quantised players; see `apply_plan`.
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
    sequential: bool = False
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
    def within_budget(self) -> bool:
        """Whether the plan keeps its budget; one that `impq.apply.applied_plan` has counted anew may not."""
        if self.budget.bytes is not None:
            return self.bytes <= self.budget.bytes
        assert self.budget.avg_bits is not None
        weights = sum(player.weights for player in self.players)
        average = 8 * self.quantised_bytes / weights if self.budget.effective else self.avg_bits
        return average <= self.budget.avg_bits * (1 + ROUNDING)

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
            "sequential": self.sequential,
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
                sequential=bool(data.get("sequential", False)),  # absent from the first plans
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

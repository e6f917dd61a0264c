"""The played game: walks, losses, and what follows from them; value functions and header come with it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from aisec_common.files import write_atomic
from safetensors import SafetensorError
from safetensors.numpy import load, save

from impq import spqe
from impq.header import GameHeader
from impq.spqe import Floats, Integers
from impq.value import Memo, TableValue, Value, exhaustive, prefix_order
from impq.walks import Walks

__all__ = ["Game", "GameHeader", "Memo", "TableValue", "Value", "exhaustive", "prefix_order"]

SCHEMA = "impq-game/1"


@dataclass(frozen=True, kw_only=True, eq=False)
class Game:
    """A played game: the walks taken and every loss on them. Steps are numbered `player * (widths - 1) + level`.

    Args:
        header: what was played, with the loss at the start measured.
        orders: steps (M, K) of each walk.
        losses: v (M, K) after 1..K steps of each walk, float64, in `header.loss_unit`.
        n_evaluations, n_memo_hits, n_block_forwards: what it cost.

    Raises:
        ValueError: if the arrays do not fit the header.

    >>> from impq.play import play
    >>> from impq.table_games import planted_game
    >>> from impq.value import TableValue
    >>> planted = planted_game("positive", seed=0, players=4)
    >>> game = play(TableValue(planted.calibration), planted.header, n_permutations=20)
    >>> game.shapley.shape, game.ci().shape
    ((4,), (4, 2))
    >>> bool(abs(game.shapley.sum() - (game.header.v_low - game.header.v_high)) < 1e-9)  # efficiency
    True
    """

    header: GameHeader
    orders: Integers
    losses: Floats
    n_evaluations: int
    n_memo_hits: int
    n_block_forwards: float

    def __post_init__(self) -> None:
        walks = self.header.walks
        if self.orders.ndim != 2 or self.orders.shape[1] != walks.length or not len(self.orders):
            raise ValueError(f"orders must have shape (walks, {walks.length}), got {self.orders.shape}")
        if self.losses.shape != self.orders.shape or not np.isfinite(self.losses).all():
            raise ValueError(f"losses must be finite and have the shape of orders {self.orders.shape}")
        ordered = np.sort(self.orders, axis=1)
        if ordered.min() < 0 or ordered.max() >= walks.steps or (np.diff(ordered, axis=1) == 0).any():
            raise ValueError(f"orders must hold different steps of 0..{walks.steps - 1} in every walk")
        if self.header.v_start is None:
            raise ValueError("header: the loss at the start of the walks (v_high or v_low) must be measured first")

    @property
    def walks(self) -> Walks:
        """The walks it was played with; walk m of the game is `walks.order(m)`."""
        return self.header.walks

    @cached_property
    def marginals(self) -> Floats:
        """Loss that each step added in each walk (M, steps); NaN where a walk did not take it; positive: it hurts."""
        v_start = self.header.v_start
        assert v_start is not None
        sign = 1 if self.header.direction == "demote" else -1
        return spqe.marginals(self.orders, self.losses, v_start, self.walks.steps, sign)

    @cached_property
    def shapley(self) -> Floats:
        """Shapley estimates (steps,), in `header.loss_unit`."""
        return spqe.shapley(self.marginals)

    @cached_property
    def stderr(self) -> Floats:
        """Standard errors (steps,) of `shapley`."""
        return spqe.stderr(self.marginals, self.header.antithetic)

    def ci(self, level: float = 0.95) -> Floats:
        """Confidence intervals (steps, 2) of `shapley`."""
        return spqe.interval(self.marginals, self.header.antithetic, level)

    @cached_property
    def covariance(self) -> Floats:
        """Covariance (steps, steps) of the marginals over all walks, antithetic ones included one by one."""
        return spqe.covariance(self.marginals)

    @cached_property
    def sha256(self) -> str:
        """Hash of header, orders and losses: what a plan made from this game refers to."""
        digest = hashlib.sha256(json.dumps(self.header.to_json(), sort_keys=True).encode())
        digest.update(np.ascontiguousarray(self.orders, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(self.losses, dtype="<f8").tobytes())
        return digest.hexdigest()

    def head(self, n_permutations: int) -> Game:
        """The game after its first walks; the counts stay those of the whole game.

        Raises:
            ValueError: if there are not as many walks.
        """
        if not 1 <= n_permutations <= len(self.orders):
            raise ValueError(f"n_permutations must lie in 1..{len(self.orders)}, got {n_permutations}")
        return replace(self, orders=self.orders[:n_permutations], losses=self.losses[:n_permutations])

    def save(self, folder: Path | str) -> None:
        """Writes `game.safetensors` (orders, losses and what follows from them) and `game.json` into `folder`."""
        tensors = {"orders": self.orders, "losses": self.losses, "shapley": self.shapley, "stderr": self.stderr}
        if self.walks.end is not None and len(self.orders) > 1:
            tensors["covariance"] = self.covariance
        write_atomic(Path(folder) / "game.safetensors", save({k: np.ascontiguousarray(v) for k, v in tensors.items()}))
        summary = {
            "schema": SCHEMA,
            "sha256": self.sha256,
            "n_permutations": len(self.orders),
            "n_evaluations": self.n_evaluations,
            "n_memo_hits": self.n_memo_hits,
            "n_block_forwards": self.n_block_forwards,
            "header": self.header.to_json(),
        }
        write_atomic(Path(folder) / "game.json", json.dumps(summary, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> Game:
        """The game that `save` wrote.

        Raises:
            ValueError: in one line naming the file, if one is missing, damaged or not of this game.
        """
        path = Path(folder) / "game.json"
        try:
            summary = json.loads(path.read_text())
            if not isinstance(summary, dict) or summary.get("schema") != SCHEMA:
                raise ValueError(f"schema is not {SCHEMA}")
            header = GameHeader.from_json(summary["header"])
            path = path.with_name("game.safetensors")
            tensors = load(path.read_bytes())
            game = cls(
                header=header,
                orders=tensors["orders"],
                losses=tensors["losses"],
                n_evaluations=int(summary["n_evaluations"]),
                n_memo_hits=int(summary["n_memo_hits"]),
                n_block_forwards=float(summary["n_block_forwards"]),
            )
            if game.sha256 != summary["sha256"]:
                raise ValueError("it does not belong to the game.json beside it")
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror}); name the folder of a saved game") from None
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise ValueError(f"{path}: is not a saved game ({str(error).splitlines()[0]})") from None
        return game

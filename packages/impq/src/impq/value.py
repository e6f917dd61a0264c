"""Value functions of the game: memo, table, order of evaluation, and the exhaustive table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from impq.spqe import Floats
from impq.walks import Coalition

Value = Callable[[Sequence[Coalition]], Sequence[float]]
"""Losses (nats per token) of coalitions, evaluated in the given order; neighbours should share their first players."""


class Memo:
    """A value function that never evaluates a coalition twice.

    Args:
        value: the value function.
        steps: names of the steps, for errors; without them steps are numbered.

    Attributes:
        known: loss of every coalition seen; may be filled from a journal.
        evaluations: coalitions handed to `value`.
        hits: requests answered from `known`.

    >>> memo = Memo(TableValue([0.0, 1.0, 2.0, 4.0]))
    >>> memo([0, 3, 3]).tolist(), memo.evaluations, memo.hits
    ([0.0, 4.0, 4.0], 2, 1)
    """

    def __init__(self, value: Value, steps: Sequence[str] = ()) -> None:
        self._value = value
        self._steps = steps
        self.known: dict[Coalition, float] = {}
        self.evaluations = 0
        self.hits = 0

    def __call__(self, coalitions: Sequence[Coalition]) -> Floats:
        """Losses of the coalitions (n,).

        Raises:
            ValueError: if a loss is not finite, naming the step demoted last, or `value` returns too few.
        """
        new = [coalition for coalition in dict.fromkeys(coalitions) if coalition not in self.known]
        losses = [float(loss) for loss in self._value(new)] if new else []
        if len(losses) != len(new):
            raise ValueError(f"value returned {len(losses)} losses for {len(new)} coalitions; it must return one each")
        for coalition, loss in zip(new, losses, strict=True):
            if not np.isfinite(loss):
                raise ValueError(self._not_finite(coalitions, coalition, loss))
        self.known.update(zip(new, losses, strict=True))
        self.evaluations += len(new)
        self.hits += len(coalitions) - len(new)
        return np.array([self.known[coalition] for coalition in coalitions], dtype=np.float64)

    def _not_finite(self, coalitions: Sequence[Coalition], bad: Coalition, loss: float) -> str:
        position = list(coalitions).index(bad)
        changed = bad ^ (coalitions[position - 1] if position else 0)
        # the step that set the coalition apart from the one before; else the deepest one
        last = (changed if changed.bit_count() == 1 else bad).bit_length() - 1
        if last < 0:
            return f"value: the loss is {loss} with every player at its high width; check model and calibration text"
        name = f"step {last}" + (f" ({self._steps[last]})" if self._steps else "")
        return (
            f"value: the loss is {loss} at coalition {bad:#x}, demoted last: {name}; compute logits and loss in "
            "float32 or choose a higher low width"
        )


class TableValue:
    """A value function that looks up a table of 2^n losses, indexed by coalition.

    Raises:
        ValueError: if the table is not one-dimensional with a power of two entries.

    >>> TableValue([0.0, 1.0, 2.0, 4.0])([2, 0])
    [2.0, 0.0]
    """

    def __init__(self, table: ArrayLike) -> None:
        self.table = np.asarray(table, dtype=np.float64)
        if self.table.ndim != 1 or self.table.size < 2 or self.table.size & (self.table.size - 1):
            raise ValueError(f"table must hold 2^players losses in one dimension, got shape {self.table.shape}")

    def __call__(self, coalitions: Sequence[Coalition]) -> list[float]:
        return [float(self.table[coalition]) for coalition in coalitions]


def prefix_order(coalitions: Iterable[Coalition], steps: int) -> list[Coalition]:
    """Coalitions in the order of a depth-first walk through the prefix tree whose root edge is step 0.

    Neighbours share as many first players as possible, so a runner that keeps hidden states recomputes least.

    >>> prefix_order(range(4), 2)
    [0, 2, 1, 3]
    """
    return sorted(coalitions, key=lambda coalition: f"{coalition:0{steps}b}"[::-1])


def exhaustive(value: Value, steps: int) -> Floats:
    """The whole table of a game with two widths, (2^steps,) indexed by coalition, evaluated in prefix order.

    Raises:
        ValueError: if there are more than 20 steps.

    >>> exhaustive(TableValue([0.0, 1.0, 2.0, 4.0]), 2).tolist()
    [0.0, 1.0, 2.0, 4.0]
    """
    if not 1 <= steps <= 20:
        raise ValueError(f"steps: an exhaustive game needs 1..20 of them, got {steps}; use walks instead")
    order = prefix_order(range(1 << steps), steps)
    table = np.empty(1 << steps)
    table[order] = Memo(value)(order)
    return table

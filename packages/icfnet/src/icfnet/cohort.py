"""The patients of a study: outcome, patch bags, gene groups, clinical text and the facts a report groups by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from icfnet.config import MODALITIES, require_modalities

RACE, TREATMENT = 2, slice(3, 5)
"""Columns of `Cohort.structured`: sex, age / 100, race code, pharmaceutical treatment, radiation."""


class StoredBag(Protocol):
    """Patch features `[N, D]` that stay where they are stored; `bag[rows]` reads those rows, `bag[:]` all."""

    @property
    def shape(self) -> torch.Size:
        """`[N, D]`, known without reading a patch."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the features."""

    @property
    def identity(self) -> object:
        """What tells this bag from another without reading it, such as files and their times; goes into JSON."""

    def __getitem__(self, rows: Any) -> Tensor:
        """The patches at `rows`, in that order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cohort:
    """Patients with a survival time each and any of three modalities: `wsi`, `genes`, `text`.

    A modality may be absent for the whole cohort (`None`) or for single patients: no bag, `genes_present` false, or
    neither sentences nor a known structured fact. Row i of everything is patient i.

    Args:
        ids: n distinct names of the patients.
        time: `[n]` months until the event or until the patient was last seen.
        event: `[n]` whether the event was seen (False: censored).
        bags: for each patient patch features `[N_i, D]`, a tensor or a `StoredBag`, or None. Their values are looked
            at when they are read (`patches`), not before.
        genes: group name -> `[n, g_j]` columns; a patient without genes holds anything there.
        genes_present: `[n]`, by default everyone where `genes` is given.
        text: for each patient the demographic and the treatment sentence, or None; an empty sentence is a missing one.
        structured: `[n, 5]` sex, age / 100, race code, pharmaceutical treatment, radiation; -1 is unknown.
        groups: one row a patient, columns to group a report by (sex, race).
        folds: fold -> (ids to train on, ids to test on).

    Raises:
        ValueError: for repeated ids, lengths that differ, a negative or unknown time, an empty bag, genes or facts that
            are not finite; the line names the patient.

    >>> cohort = Cohort(ids=("a", "b"), time=[3, 9], event=[1, 0], genes={"Oncogenes": torch.ones(2, 4)})
    >>> cohort.modalities, len(cohort.take([1])), cohort.take([1]).ids
    (('genes',), 1, ('b',))
    """

    ids: tuple[str, ...]
    time: NDArray[np.float64]
    event: NDArray[np.bool_]
    bags: tuple[Tensor | StoredBag | None, ...] | None = None
    genes: Mapping[str, Tensor] | None = None
    genes_present: NDArray[np.bool_] | None = None
    text: tuple[tuple[str, str] | None, ...] | None = None
    structured: Tensor | None = None
    groups: pd.DataFrame = field(default_factory=pd.DataFrame)
    folds: Mapping[int, tuple[tuple[str, ...], tuple[str, ...]]] | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        present = self.genes_present if self.genes_present is not None else [self.genes is not None] * n
        fixed: dict[str, Any] = {
            "ids": tuple(map(str, self.ids)),
            "time": np.asarray(self.time, dtype=np.float64),
            "event": np.asarray(self.event, dtype=bool),
            "genes_present": np.asarray(present, dtype=bool),
            "groups": self.groups if len(self.groups.columns) else pd.DataFrame(index=list(map(str, self.ids))),
            "bags": None if self.bags is None else tuple(self.bags),
            "text": None if self.text is None else tuple(self.text),
        }
        for name, value in fixed.items():
            object.__setattr__(self, name, value)
        self._check_lengths(n)
        self._check_outcome()
        self._check_bags()
        self._check_tables()
        self._check_folds()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shape(self) -> tuple[int]:
        """`(n,)`: with `__getitem__` all that scikit-learn's splitters ask of an X."""
        return (len(self),)

    def __getitem__(self, indices: Any) -> Cohort:
        return self.take(indices[0] if isinstance(indices, tuple) else indices)  # scikit-learn asks for [rows, ...]

    @property
    def presence(self) -> dict[str, NDArray[np.bool_]]:
        """Modality -> `[n]` whether the patient has it."""
        n = len(self)
        wsi = [bag is not None for bag in self.bags] if self.bags is not None else [False] * n
        text = [pair is not None and any(pair) for pair in self.text] if self.text is not None else [False] * n
        known = (self.structured != -1).any(1).numpy() if self.structured is not None else np.zeros(n, dtype=bool)
        assert self.genes_present is not None
        found = (np.asarray(wsi, dtype=bool), self.genes_present, np.asarray(text, dtype=bool) | known)
        return dict(zip(MODALITIES, found, strict=True))

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that at least one patient has."""
        return tuple(name for name, has in self.presence.items() if has.any())

    def patches(self, patient: int, rows: Any = slice(None)) -> Tensor:
        """The patch features `[N, D]` of one patient with a bag, read now; of the patches at `rows` alone, if given.

        Raises:
            ValueError: for features that are not finite.
        """
        assert self.bags is not None
        bag = self.bags[patient]
        assert bag is not None
        found = bag[rows]
        low, high = found.aminmax()  # spreads NaN, in a twentieth of the time of isfinite over all
        if not (low.isfinite() and high.isfinite()):
            name = self.ids[patient]
            raise ValueError(f"bags: patient {name!r} has patch features that are not finite; mend them or give None")
        return found

    def take(self, indices: Any) -> Cohort:
        """The patients at `indices` (integers, a mask or a slice), in that order; the folds are left behind."""
        rows = np.atleast_1d(np.arange(len(self))[indices])
        index = torch.from_numpy(rows)
        assert self.genes_present is not None
        return Cohort(
            ids=tuple(self.ids[i] for i in rows),
            time=self.time[rows],
            event=self.event[rows],
            bags=None if self.bags is None else tuple(self.bags[i] for i in rows),
            genes=None if self.genes is None else {name: table[index] for name, table in self.genes.items()},
            genes_present=self.genes_present[rows],
            text=None if self.text is None else tuple(self.text[i] for i in rows),
            structured=None if self.structured is None else self.structured[index],
            groups=self.groups.iloc[rows],
        )

    def split(self, fold: int) -> tuple[Cohort, Cohort]:
        """The patients to train on and the patients to test on of one fold.

        Raises:
            ValueError: when the cohort has no such fold.
        """
        if self.folds is None or fold not in self.folds:
            raise ValueError(f"fold must be one of {sorted(self.folds or ())}, got {fold!r}")
        row = {name: i for i, name in enumerate(self.ids)}
        train, test = ([row[name] for name in names] for names in self.folds[fold])
        return self.take(train), self.take(test)

    def surv(self) -> NDArray[np.void]:
        """The outcome as scikit-survival's structured array, fields `event` and `time`."""
        outcome = np.empty(len(self), dtype=[("event", "?"), ("time", "<f8")])
        outcome["event"], outcome["time"] = self.event, self.time
        return outcome

    def with_outcome(self, time: NDArray[np.float64], event: NDArray[np.bool_]) -> Cohort:
        """The same patients with another outcome, for example a permuted one."""
        return replace(self, time=time, event=event)

    def without(self, part: str) -> Cohort:
        """The cohort without one modality, or without `treatment`.

        Treatment is given after the first day: as an input it lets long survivors be recognised by what they lived to
        receive (immortal time). `without("treatment")` empties the sentence and the two structured facts.

        Raises:
            ValueError: for another word.
        """
        if part == "treatment":
            text = None if self.text is None else tuple(pair and (pair[0], "") for pair in self.text)
            structured = None if self.structured is None else self.structured.clone()
            if structured is not None:
                structured[:, TREATMENT] = -1
            return replace(self, text=text, structured=structured)
        require_modalities((part,), argument="part", besides=("treatment",))
        if part == "wsi":
            return replace(self, bags=None)
        if part == "genes":
            return replace(self, genes=None, genes_present=None)
        return replace(self, text=None, structured=None)

    def _check_lengths(self, n: int) -> None:
        if n == 0:
            raise ValueError("ids must be at least one patient")
        name, times = Counter(self.ids).most_common(1)[0]
        if times > 1:
            raise ValueError(f"ids must be distinct, {name!r} comes {times} times")
        columns: dict[str, Any] = {"time": self.time, "event": self.event, "bags": self.bags, "text": self.text}
        columns |= {"genes_present": self.genes_present, "structured": self.structured, "groups": self.groups}
        columns |= {f"genes[{group!r}]": table for group, table in (self.genes or {}).items()}
        for argument, values in columns.items():
            if values is not None and len(values) != n:
                raise ValueError(f"{argument} must have one row for each of the {n} ids, got {len(values)}")

    def _check_outcome(self) -> None:
        wrong = np.flatnonzero(~np.isfinite(self.time) | (self.time < 0))
        if len(wrong):
            at = wrong[0]
            raise ValueError(f"time of patient {self.ids[at]!r} must be >= 0 months, got {self.time[at]:g}")

    def _check_bags(self) -> None:
        width = None
        for name, bag in zip(self.ids, self.bags or (), strict=False):
            if bag is None:
                continue
            if len(bag.shape) != 2 or not bag.dtype.is_floating_point:
                raise ValueError(f"bags: patient {name!r} needs floating [patches, features], got {_layout(bag)}")
            if bag.shape[0] == 0:
                raise ValueError(f"bags: patient {name!r} has 0 patches; give None where there is no slide")
            width = width or bag.shape[1]
            if bag.shape[1] != width:
                raise ValueError(f"bags: patient {name!r} has {bag.shape[1]} features a patch, others have {width}")

    def _check_tables(self) -> None:
        assert self.genes_present is not None
        if self.genes is None and self.genes_present.any():
            raise ValueError("genes_present must be all False where genes is None")
        for group, table in (self.genes or {}).items():
            if table.ndim != 2 or table.shape[1] == 0 or not table.is_floating_point():
                raise ValueError(f"genes[{group!r}] must be floating [patients, columns >= 1], got {_layout(table)}")
            wrong = np.flatnonzero(~torch.isfinite(table).all(1).numpy() & self.genes_present)
            if len(wrong):
                name = self.ids[wrong[0]]
                raise ValueError(f"genes[{group!r}] of patient {name!r} are not finite; impute or set genes_present")
        if self.structured is not None:
            if self.structured.ndim != 2 or self.structured.shape[1] != 5:
                raise ValueError(f"structured must be [patients, 5], got {_layout(self.structured)}")
            wrong = np.flatnonzero(~torch.isfinite(self.structured).all(1).numpy())
            if len(wrong):
                raise ValueError(f"structured of patient {self.ids[wrong[0]]!r} is not finite; -1 is unknown")

    def _check_folds(self) -> None:
        known = set(self.ids)
        for fold, (train, test) in (self.folds or {}).items():
            strange = [name for name in (*train, *test) if name not in known]
            if strange:
                raise ValueError(f"folds[{fold!r}] names {strange[0]!r}, which is not a patient of the cohort")
            both = set(train) & set(test)
            if both:
                raise ValueError(f"folds[{fold!r}] has {sorted(both)[0]!r} both to train on and to test on")


def known_rows(cohort: Cohort, modalities: Sequence[str]) -> NDArray[np.bool_]:
    """`[n]` whether each patient has at least one of `modalities`."""
    presence = cohort.presence
    rows: NDArray[np.bool_] = np.logical_or.reduce([presence[name] for name in modalities])
    return rows


def _layout(tensor: Tensor | StoredBag) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"

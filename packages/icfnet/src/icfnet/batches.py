"""From a cohort to mini-batches: scales fitted on the patients to train on, padded bags, masks of what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from icfnet.cohort import RACE, Cohort, known_rows


@dataclass(frozen=True, kw_only=True)
class InputSizes:
    """Widths of what the network reads; None or empty where an input is left out.

    Args:
        patch: D, features of a patch.
        genes: group name -> number of columns.
        text: width of a sentence embedding.
        structured: number of structured facts.

    >>> InputSizes(genes={"Oncogenes": 3}).patch is None
    True
    """

    patch: int | None = None
    genes: Mapping[str, int] | None = None
    text: int | None = None
    structured: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B patients as padded tensors; masks are True at what is there.

    Args:
        patches: `[B, N, D]`, with `patch_mask` `[B, N]`.
        genes: `[B, g_j]` for each group, with `genes_mask` `[B]`.
        sentences: `[B, 2, E]` embeddings, with `sentence_mask` `[B, 2]`.
        structured: `[B, s]`, with `structured_mask` `[B]`.
    """

    patches: Tensor | None = None
    patch_mask: Tensor | None = None
    genes: list[Tensor] | None = None
    genes_mask: Tensor | None = None
    sentences: Tensor | None = None
    sentence_mask: Tensor | None = None
    structured: Tensor | None = None
    structured_mask: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Scales:
    """What is fitted on the patients to train on: mean and deviation of every gene column, the race codes, the widths.

    Args:
        sizes: widths of the network's inputs.
        means: group name -> `[g_j]`.
        deviations: group name -> `[g_j]`, 1 for a constant column.
        races: codes with a column of their own; None keeps the code as one number (the released code).
    """

    sizes: InputSizes
    means: Mapping[str, Tensor]
    deviations: Mapping[str, Tensor]
    races: tuple[int, ...] | None

    @classmethod
    def fit(
        cls,
        cohort: Cohort,
        modalities: Sequence[str],
        *,
        text_width: int | None,
        race_encoding: Literal["onehot", "ordinal"] = "onehot",
    ) -> Scales:
        """Scales of the patients to train on.

        Args:
            cohort: the patients to train on.
            modalities: those the network will read; each is there for at least one patient.
            text_width: width of a sentence embedding, None without sentences.
            race_encoding: a column for each code seen, or the code itself.
        """
        tables = dict(cohort.genes or {}) if "genes" in modalities else {}
        rows = torch.from_numpy(cohort.presence["genes"])
        means = {group: table[rows].float().mean(0) for group, table in tables.items()}
        spread = {group: table[rows].float().std(0, correction=0) for group, table in tables.items()}
        bags = (cohort.bags or ()) if "wsi" in modalities else ()
        facts = cohort.structured if "text" in modalities else None
        races = None
        if facts is not None and race_encoding == "onehot":
            races = tuple(code for code in sorted(set(facts[:, RACE].int().tolist())) if code != -1)
        sizes = InputSizes(
            patch=next((bag.shape[1] for bag in bags if bag is not None), None),
            genes={group: table.shape[1] for group, table in tables.items()},
            text=text_width if "text" in modalities else None,
            structured=None if facts is None else 5 if races is None else 4 + len(races),
        )
        deviations = {group: values.where(values > 0, 1.0) for group, values in spread.items()}
        return cls(sizes=sizes, means=means, deviations=deviations, races=races)

    def require(self, cohort: Cohort, modalities: Sequence[str]) -> None:
        """Raises ValueError where the cohort's columns, features or patients are not what the network reads."""
        nobody = np.flatnonzero(~known_rows(cohort, modalities))
        if len(nobody):
            name = cohort.ids[nobody[0]]
            raise ValueError(f"patient {name!r} has none of {', '.join(modalities)}; leave the patient out")
        if self.sizes.genes and cohort.genes is not None:
            strange, lost = set(cohort.genes) - set(self.sizes.genes), set(self.sizes.genes) - set(cohort.genes)
            if strange:
                raise ValueError(
                    f"genes has the unknown group {min(strange)!r}; known are {', '.join(self.sizes.genes)}"
                )
            if lost:
                raise ValueError(f"genes lacks the group {min(lost)!r}; set genes_present where a patient has none")
            for group, table in cohort.genes.items():
                if table.shape[1] != self.sizes.genes[group]:
                    raise ValueError(
                        f"genes[{group!r}] must have {self.sizes.genes[group]} columns, got {table.shape[1]}"
                    )
        for name, bag in zip(cohort.ids, (cohort.bags or ()) if self.sizes.patch else (), strict=False):
            if bag is not None and bag.shape[1] != self.sizes.patch:
                raise ValueError(f"bags: patient {name!r} has {bag.shape[1]} features a patch, not {self.sizes.patch}")

    def structured(self, cohort: Cohort) -> Tensor:
        """The structured facts `[n, s]` as the network reads them, the race code in columns of its own.

        Raises:
            ValueError: for a race code that no patient to train on had.
        """
        assert cohort.structured is not None
        facts = cohort.structured.float()
        if self.races is None:
            return facts
        code = facts[:, RACE].int()
        seen = torch.tensor([-1, *self.races], dtype=code.dtype)
        strange = torch.nonzero(~torch.isin(code, seen))
        if len(strange):
            at = int(strange[0])
            known = ", ".join(map(str, self.races))
            raise ValueError(
                f"structured: patient {cohort.ids[at]!r} has race code {int(code[at])}, seen are {known}; "
                "fit with race_encoding='ordinal' or give -1 (unknown)"
            )
        columns = (code[:, None] == seen[None, 1:]).float()
        return torch.cat([facts[:, :RACE], columns, facts[:, RACE + 1 :]], dim=1)


class Inputs:
    """A cohort's tensors, scaled once, from which batches are cut.

    Args:
        cohort: the patients.
        scales: fitted on the patients to train on.
        modalities: those the network reads.
        embeddings: `[n, 2, E]` of both sentences, anything where a sentence is missing; None without sentences.

    Raises:
        ValueError: see `Scales.require`.
    """

    def __init__(
        self, cohort: Cohort, scales: Scales, modalities: Sequence[str], embeddings: Tensor | None = None
    ) -> None:
        scales.require(cohort, modalities)
        n, sizes = len(cohort), scales.sizes
        presence = {name: torch.from_numpy(has) for name, has in cohort.presence.items()}
        self.cohort, self.patch = cohort, sizes.patch
        bags = cohort.bags if sizes.patch is not None else None
        self.lengths = [0 if bag is None else bag.shape[0] for bag in bags or (None,) * n]
        self.genes: list[Tensor] | None = None
        if sizes.genes:
            self.genes_mask = presence["genes"]
            blank = {group: torch.zeros(n, columns) for group, columns in sizes.genes.items()}
            self.genes = [
                (((cohort.genes or blank)[group].float() - scales.means[group]) / scales.deviations[group]).where(
                    self.genes_mask[:, None], 0.0
                )
                for group in sizes.genes
            ]
        self.sentences: Tensor | None = None
        if sizes.text is not None:
            spoken = [(bool(pair[0]), bool(pair[1])) if pair else (False, False) for pair in cohort.text or (None,) * n]
            self.sentence_mask = torch.tensor(spoken)
            self.sentences = torch.zeros(n, 2, sizes.text) if embeddings is None else embeddings.float()
        self.structured: Tensor | None = None
        if sizes.structured is not None:
            known = cohort.structured is not None
            self.structured = scales.structured(cohort) if known else torch.zeros(n, sizes.structured)
            facts = cohort.structured if known else -torch.ones(n, 1)
            assert facts is not None
            self.structured_mask = (facts != -1).any(1)

    def batch(
        self, rows: Tensor, device: torch.device, *, max_patches: int | None = None, rng: torch.Generator | None = None
    ) -> Batch:
        """The patients at `rows`, bags padded to the longest of them; patches are read here.

        Args:
            rows: `[B]` indices.
            device: where the tensors go.
            max_patches: a larger bag is cut to this many patches, drawn with `rng`.
            rng: a CPU generator; without one, torch's own.

        Raises:
            ValueError: for patch features that are not finite.
        """
        patches = mask = None
        if self.patch is not None:
            bags = [self._patches(i, self.patch, max_patches, rng) for i in rows.tolist()]
            lengths = torch.tensor([len(bag) for bag in bags])
            patches = torch.nn.utils.rnn.pad_sequence(bags, batch_first=True)
            mask = (torch.arange(patches.shape[1]) < lengths[:, None]).to(device)
            patches = patches.to(device).float()  # bags may be kept in half precision
        return Batch(
            patches=patches,
            patch_mask=mask,
            genes=None if self.genes is None else [table[rows].to(device) for table in self.genes],
            genes_mask=None if self.genes is None else self.genes_mask[rows].to(device),
            sentences=None if self.sentences is None else self.sentences[rows].to(device),
            sentence_mask=None if self.sentences is None else self.sentence_mask[rows].to(device),
            structured=None if self.structured is None else self.structured[rows].to(device),
            structured_mask=None if self.structured is None else self.structured_mask[rows].to(device),
        )

    def whole(self, device: torch.device, size: int, *, max_patches: int | None = None) -> Iterator[Batch]:
        """All patients in order with all of their patches, `size` at a time.

        With `max_patches` a batch is ended early where it would hold more padded patches than `size` cut bags, so that
        whole bags need no more memory than a training step, unless one alone is larger.
        """
        most = float("inf") if max_patches is None else size * max_patches
        rows: list[int] = []
        for i, length in enumerate(self.lengths):
            longest = max([length, *(self.lengths[j] for j in rows)])
            if rows and (len(rows) == size or longest * (len(rows) + 1) > most):
                yield self.batch(torch.tensor(rows), device)
                rows = []
            rows.append(i)
        yield self.batch(torch.tensor(rows), device)

    def _patches(self, patient: int, features: int, most: int | None, rng: torch.Generator | None) -> Tensor:
        length = self.lengths[patient]
        if length == 0:
            return torch.zeros(0, features)
        if most is None or length <= most:
            return self.cohort.patches(patient)
        return self.cohort.patches(patient, torch.randperm(length, generator=rng)[:most])


def class_balanced_draws(label: Tensor, event: Tensor, rng: torch.Generator) -> Tensor:
    """`[n]` indices drawn with replacement, weights inverse to the counts of the 2 n classes (bin x censoring).

    Args:
        label: `[n]` bins.
        event: `[n]` boolean.
        rng: a CPU generator.

    >>> drawn = class_balanced_draws(torch.tensor([0] * 99 + [1]), torch.ones(100).bool(), torch.Generator())
    >>> 30 < int((drawn == 99).sum()) < 70
    True
    """
    _, at, counts = torch.unique(2 * label + event.long(), return_inverse=True, return_counts=True)
    return torch.multinomial(1.0 / counts[at].float(), len(label), replacement=True, generator=rng)

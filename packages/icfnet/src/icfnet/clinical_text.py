"""Clinical facts as the model takes them: two sentences and five numbers a patient (section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RACES = (
    "white",
    "black or african american",
    "asian",
    "american indian or alaska native",
    "native hawaiian or other pacific islander",
)
"""Race as the Genomic Data Commons reports it; a code is a place in this list."""

UNKNOWN = -1.0

_TREATMENTS = {
    (True, True): "The patient received pharmaceutical and radiation treatment.",
    (True, False): "The patient received pharmaceutical treatment only.",
    (False, True): "The patient received radiation treatment only.",
    (False, False): "The patient received neither pharmaceutical nor radiation treatment.",
}


@dataclass(frozen=True, kw_only=True)
class ClinicalFacts:
    """What is known of one patient; None for what is not.

    Args:
        age: in years, 0 to 120.
        female: sex.
        race: one of `RACES`.
        pharmaceutical: whether the patient got such a treatment.
        radiation: likewise.

    Raises:
        ValueError: for an age out of range or a race that is not in the list.

    >>> facts = ClinicalFacts(age=63, female=True, race="asian", pharmaceutical=True)
    >>> facts.demographic
    'The patient is a 63-year-old asian race woman.'
    >>> facts.treatment
    'The patient received pharmaceutical treatment only.'
    >>> facts.row
    (1.0, 0.63, 2.0, 1.0, -1.0)
    """

    age: float | None = None
    female: bool | None = None
    race: str | None = None
    pharmaceutical: bool | None = None
    radiation: bool | None = None

    def __post_init__(self) -> None:
        if self.age is not None and not (math.isfinite(self.age) and 0 <= self.age <= 120):
            raise ValueError(f"age must lie in 0 to 120 years, not {self.age}; leave it out where it is not known")
        if self.race is not None and self.race not in RACES:
            raise ValueError(f"race {self.race!r} is none of {', '.join(RACES)}; leave it out where it is not reported")

    @property
    def demographic(self) -> str:
        """Age, race and sex in a sentence; what is not known is left out (ours: the paper has no such patient)."""
        age = "" if self.age is None else f"{self.age:.0f}-year-old "
        race = "" if self.race is None else f"{self.race} race "
        noun = "person" if self.female is None else "woman" if self.female else "man"
        return f"The patient is a {age}{race}{noun}."

    @property
    def treatment(self) -> str:
        """One of the paper's four sentences, not reported counting as no; no sentence where both are not (ours)."""
        if self.pharmaceutical is None and self.radiation is None:
            return ""
        return _TREATMENTS[bool(self.pharmaceutical), bool(self.radiation)]

    @property
    def row(self) -> tuple[float, float, float, float, float]:
        """Sex (1 woman), age / 100, place of the race in `RACES`, pharmaceutical, radiation; -1 where unknown."""
        return (
            UNKNOWN if self.female is None else float(self.female),
            UNKNOWN if self.age is None else self.age / 100,
            UNKNOWN if self.race is None else float(RACES.index(self.race)),
            UNKNOWN if self.pharmaceutical is None else float(self.pharmaceutical),
            UNKNOWN if self.radiation is None else float(self.radiation),
        )


def clinical_inputs(facts: Sequence[ClinicalFacts]) -> tuple[tuple[tuple[str, str], ...], Tensor]:
    """The sentences and the table of a cohort: n pairs of sentences and a float tensor [n, 5].

    >>> text, table = clinical_inputs([ClinicalFacts(age=50)])
    >>> text[0][0], table.shape
    ('The patient is a 50-year-old person.', torch.Size([1, 5]))
    """
    return tuple((each.demographic, each.treatment) for each in facts), torch.tensor([each.row for each in facts])

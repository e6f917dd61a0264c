"""A synthetic cohort whose risk is spread over tissue, genes and clinical facts, one part of it shared (section 7, A).

Latents u1..u4 ~ N(0, 1): morphology, genome, shared, clinical. Log-risk = .8 u1 + .8 u2 + .6 u3 + .6 u4 - .5 pharma.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from aisec_common.seeding import numpy_rng
from numpy.typing import NDArray

from icfnet.clinical_text import RACES, ClinicalFacts, clinical_inputs
from icfnet.cohort import Cohort

GROUPS = 6
COLUMNS = 12  # of a gene group
PATCHES = 32
FEATURES = 32  # of a patch
SHAPE, SCALE = 1.5, 20.0  # Weibull, months
CENSORING = 45.0  # mean of the exponential censoring time, months


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticCohort:
    """A made-up cohort and what decides its patients' fate.

    `cohort.folds` has one split, 0: the first `training` patients and the rest. `log_risk` [n] is the oracle.
    """

    cohort: Cohort
    log_risk: NDArray[np.float64]


def synthetic_cohort(seed: int, *, patients: int = 900, training: int = 500) -> SyntheticCohort:
    """Draws the cohort of one seed.

    Bags: 32 patches of 32 features, standard normal; a fraction 0.4 sigmoid(u1 + u3) of them is shifted by 3 along one
    unit direction. Genes: 6 groups of 12 columns, 0.5 W (u2, 0.6 u3) + e. Text: age = 65 + 8 u4 + 4 e, sex, race (of
    no effect) and two treatments given at random. T = 20 (E / exp(log-risk))^(1 / 1.5), E ~ Exp(1); censoring
    exponential, mean 45 months (37 to 40 % censored).

    Args:
        seed: of everything drawn.
        patients: n.
        training: how many of them train in fold 0.

    Returns:
        The cohort and its true log-risk.

    Raises:
        ValueError: unless 0 < training < patients.

    >>> made = synthetic_cohort(0, patients=20, training=12)
    >>> train, test = made.cohort.split(0)
    >>> len(train), len(test), made.cohort.bags[0].shape
    (12, 8, torch.Size([32, 32]))
    """
    if not 0 < training < patients:
        raise ValueError(f"training must lie between 0 and patients ({patients}), not {training}")
    rng = numpy_rng(seed, "icfnet", "cohort")
    morphology, genome, shared, clinical = rng.normal(size=(4, patients))
    pharmaceutical, radiation, female = rng.random((3, patients)) < 0.5
    log_risk = 0.8 * morphology + 0.8 * genome + 0.6 * shared + 0.6 * clinical - 0.5 * pharmaceutical

    fraction = 0.4 / (1 + np.exp(-(morphology + shared)))
    direction = rng.normal(size=FEATURES)
    direction /= np.linalg.norm(direction)
    shifted = np.arange(PATCHES) < np.round(fraction * PATCHES)[:, None]
    bags = rng.normal(size=(patients, PATCHES, FEATURES)) + 3 * shifted[:, :, None] * direction

    causes = np.stack([genome, 0.6 * shared], axis=1)
    loadings = rng.normal(size=(GROUPS, 2, COLUMNS))
    genes = 0.5 * causes @ loadings + rng.normal(size=(GROUPS, patients, COLUMNS))

    ages = np.clip(65 + 8 * clinical + 4 * rng.normal(size=patients), 18, 100).round()
    races = rng.integers(3, size=patients)
    facts = [
        ClinicalFacts(
            age=float(ages[i]),
            female=bool(female[i]),
            race=RACES[races[i]],
            pharmaceutical=bool(pharmaceutical[i]),
            radiation=bool(radiation[i]),
        )
        for i in range(patients)
    ]
    text, structured = clinical_inputs(facts)

    death = SCALE * (rng.exponential(size=patients) / np.exp(log_risk)) ** (1 / SHAPE)
    censoring = rng.exponential(CENSORING, size=patients)
    ids = tuple(f"P{i:04d}" for i in range(patients))
    cohort = Cohort(
        ids=ids,
        time=np.minimum(death, censoring),
        event=death <= censoring,
        bags=tuple(torch.from_numpy(bags.astype(np.float32))),
        genes={f"group {g + 1}": torch.from_numpy(genes[g].astype(np.float32)) for g in range(GROUPS)},
        text=text,
        structured=structured,
        groups=pd.DataFrame({"sex": np.where(female, "woman", "man"), "race": [RACES[race] for race in races]}),
        folds={0: (ids[:training], ids[training:])},
    )
    return SyntheticCohort(cohort=cohort, log_risk=log_risk)

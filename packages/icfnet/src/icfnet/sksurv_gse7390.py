"""GSE7390, 198 women with node-negative breast cancer, as scikit-survival bundles it: no slides, no download."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from aisec_common.seeding import derived_seed
from sklearn.model_selection import StratifiedKFold
from sksurv.datasets import load_breast_cancer

from icfnet.clinical_text import ClinicalFacts, clinical_inputs
from icfnet.cohort import Cohort

DAYS_PER_MONTH = 365.25 / 12
BLOCKS = 6
FACTS = ("er", "grade", "size")
"""Columns of `groups` that are findings about the tumour, beside sex."""

_GRADES = {
    "well differentiated": "well differentiated",
    "intermediate": "of intermediate grade",
    "poorly differentiated": "poorly differentiated",
}


def load_gse7390(*, folds: int = 5, seed: int = 0) -> Cohort:
    """The 76 probes in six blocks of their order, and age, ER status, grade and size as text (section 7, B).

    The time is that to distant metastasis, in months; 26 % have the event. Probes are log2 intensities as they are. The
    first sentence is the paper's, the second one, in the place of the treatment, describes the tumour (ours).

    Args:
        folds: number of splits, with the share of events alike.
        seed: of the splits.

    Returns:
        A cohort without bags; `groups` holds sex and `FACTS`.

    >>> cohort = load_gse7390()
    >>> len(cohort), int(cohort.event.sum()), cohort.bags
    (198, 51, None)
    >>> cohort.text[0]
    ('The patient is a 57-year-old woman.', 'The tumour is ER negative, poorly differentiated and 3.0 cm in size.')
    """
    table, outcome = load_breast_cancer()
    names = [name for name in table if name.startswith("X")]
    blocks = np.array_split(np.array(names), BLOCKS)
    facts = [ClinicalFacts(age=float(age), female=True) for age in table["age"]]
    text, structured = clinical_inputs(facts)
    tumours = [_tumour(er, grade, size) for er, grade, size in table[list(FACTS)].itertuples(index=False)]
    split = StratifiedKFold(folds, shuffle=True, random_state=derived_seed(seed, "gse7390") % 2**32)
    ids = np.array([f"GSE7390-{i:03d}" for i in range(len(table))])
    return Cohort(
        ids=tuple(ids.tolist()),
        time=outcome["t.tdm"] / DAYS_PER_MONTH,
        event=outcome["e.tdm"],
        genes={
            f"block {i + 1}": torch.tensor(table[list(block)].to_numpy(), dtype=torch.float32)
            for i, block in enumerate(blocks)
        },
        text=tuple((demographic, tumour) for (demographic, _), tumour in zip(text, tumours, strict=True)),
        structured=structured,
        groups=pd.DataFrame({"sex": "woman"}, index=range(len(table))).assign(
            er=table["er"].astype(str).to_numpy(),
            grade=table["grade"].astype(str).replace("unkown", "unknown").to_numpy(),
            size=table["size"].to_numpy(),
        ),
        folds={
            fold: (tuple(ids[train].tolist()), tuple(ids[test].tolist()))
            for fold, (train, test) in enumerate(split.split(ids, outcome["e.tdm"]))
        },
    )


def _tumour(er: str, grade: str, size: float) -> str:
    """One sentence; a grade that is not known is left out."""
    parts = [f"ER {er}", *([_GRADES[grade]] if grade in _GRADES else []), f"{size:.1f} cm in size"]
    return f"The tumour is {', '.join(parts[:-1])} and {parts[-1]}."

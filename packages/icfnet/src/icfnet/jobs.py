"""What the `icfnet` command takes: one frozen dataclass a verb."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from icfnet.arms import ARMS
from icfnet.config import MODALITIES, require_modalities

Folder = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True, kw_only=True)
class CohortJob:
    """A cohort in MCAT's layout.

    Args:
        csv: table of slides with clinical and gene columns, or a zip of one.
        signatures: csv with a column of gene names a group.
        bags: folder of CLAM features, SLIDE.pt; left out: no slides.
        splits: folder of splits_K.csv.
        fold: which of them.
        without_treatment: leaves the treatment sentence and columns out of the model.
    """

    csv: Path
    signatures: Path
    bags: Path | None = None
    splits: Path | None = None
    fold: int | None = None
    without_treatment: bool = False

    def __post_init__(self) -> None:
        if (self.splits is None) != (self.fold is None):
            raise ValueError("--splits and --fold belong together: a folder of splits and which of them")


@dataclass(frozen=True, kw_only=True)
class TrainJob(CohortJob):
    """Trains ICFNet on a cohort, or on the training patients of one fold; killed, it goes on where it was.

    Args:
        out: folder of the model.
        modalities: what it reads.
        text_model: `tiny` (random weights), a fetched checkpoint's name, a folder or a hub's org/name.
        loss: balanced or standard likelihood.
        bins: time bins of the patients to train on, or of all (the paper's, a leak).
        race_encoding: a column for each race code, or the code as one number (the released code).
        width: of every token.
        epochs: the last one is kept.
        batch_size: patients a step.
        learning_rate: of Adam.
        ot_reg: entropic strength: 0.05 for BLCA and LUAD, 0.1 for BRCA, UCEC and GBMLGG.
        max_patches: a larger bag is cut to as many, drawn anew at each training step; predictions read all of it.
        device: auto, cpu, cuda, ...
        seed: of weights, draws and dropout.
    """

    out: Path
    modalities: tuple[str, ...] = MODALITIES
    text_model: str = "tiny"
    loss: Literal["balanced_nll", "nll"] = "balanced_nll"
    bins: Literal["train", "cohort"] = "train"
    race_encoding: Literal["onehot", "ordinal"] = "onehot"
    width: int = 256
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 2e-4
    ot_reg: float = 0.05
    max_patches: int | None = 4096
    device: str = "auto"
    seed: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_modalities(self.modalities, argument="--modalities")


@dataclass(frozen=True, kw_only=True)
class EvaluateJob(CohortJob):
    """Reports what a model does on the test patients of a fold; refused where it was trained on any of them.

    Args:
        model: folder of `icfnet train`.
        out: folder of the report; left out: it is printed only.
        against: baselines, fitted to the same training patients.
        groups: columns to report by.
        device: auto, cpu, cuda, ...
    """

    model: Folder
    out: Path | None = None
    against: tuple[str, ...] = ()
    groups: tuple[str, ...] = ("sex", "race")
    device: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.splits is None:
            raise ValueError("--splits and --fold are missing: they say which patients the model has not seen")
        for arm in self.against:
            if arm not in ARMS:
                raise ValueError(f"--against must be of {', '.join(ARMS)}, not {arm!r}")


@dataclass(frozen=True, kw_only=True)
class CompareJob:
    """Runs the comparison on real cohorts without slides; killed, it goes on where it was.

    Args:
        out: folder of the results.
        cohort: gse7390 comes with scikit-survival; tcga-blca is read from the folder that AISEC_DATA names.
        device: auto, cpu, cuda, ...
    """

    out: Path
    cohort: Literal["tcga-blca", "gse7390"] = "gse7390"
    device: str = "cpu"

"""ICFNet on real cohorts without slides, fold by fold, beside one modality each and the peers of scikit-survival.

TCGA-BLCA in MCAT's tables with its five published folds (373 patients, genes by signature, age and sex as text), and
GSE7390 as scikit-survival bundles it. Every model sees genes and text; slides are the missing modality.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aisec_common.data import data_folder
from aisec_common.files import write_atomic
from aisec_common.result import finite
from aisec_common.study import content_hash

from icfnet.arms import PEERS, fit_with_curve, make_arm, permuted
from icfnet.cohort import Cohort

if TYPE_CHECKING:
    from icfnet.hf_text import FrozenTextTower

Show = Callable[[str, int, int], None]
CohortName = Literal["tcga-blca", "gse7390"]
TOWERS = ("tiny", "all-minilm-l6-v2")
REAL_TOWER = TOWERS[1]
FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One model of the comparison: an arm and the text tower it reads sentences with ("" where it reads none)."""

    arm: str
    tower: str = ""

    @property
    def name(self) -> str:
        """As tables and file names have it."""
        return f"{self.arm}-{self.tower}" if self.tower else self.arm


SETTINGS = (
    *(Setting(arm="icfnet", tower=tower) for tower in TOWERS),
    *(Setting(arm=arm, tower=REAL_TOWER) for arm in ("icfnet-nll", "concat", "clinical-only", "permuted")),
    Setting(arm="omic-only"),
    *(Setting(arm=peer) for peer in PEERS),
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the networks are trained on one cohort: the paper's optimizer and rates, batches for accumulated steps."""

    width: int = 256
    epochs: int = 40
    batch_size: int = 32
    learning_rate: float = 2e-4
    seed: int = 1


def load_cohort(name: CohortName) -> Cohort:
    """A real cohort with five folds.

    Raises:
        FileNotFoundError: for TCGA-BLCA when `AISEC_DATA` names no folder with it.
        ValueError: for another name.
    """
    if name == "gse7390":
        from icfnet.sksurv_gse7390 import load_gse7390

        return load_gse7390(folds=FOLDS)
    if name != "tcga-blca":
        raise ValueError(f"cohort must be tcga-blca or gse7390, not {name!r}")
    from icfnet.mcat import load_mcat_cohort

    folder = data_folder("tcga")
    return load_mcat_cohort(
        folder / "tcga_blca_all_clean.csv.zip",
        signatures=folder / "signatures.csv",
        splits=folder / "splits" / "5foldcv" / "tcga_blca",
    )


def compare(
    name: CohortName, out: Path, *, recipe: Recipe | None = None, device: str = "cpu", show: Show | None = None
) -> list[dict[str, Any]]:
    """Fits every setting on every fold; a fold that is on disk is not repeated.

    Args:
        name: which cohort.
        out: folder; results go to `out/runs`.
        recipe: of the networks.
        device: where they are trained.
        show: called as `show(what, done, total)`.

    Returns:
        One record a setting and fold.

    Raises:
        FileNotFoundError: for a cohort or checkpoint that is not there.
    """
    from icfnet.hf_text import FrozenTextTower

    cohort, recipe = load_cohort(name), recipe or Recipe()
    sentences = [sentence for pair in cohort.text or () for sentence in pair or () if sentence]
    towers = {
        "tiny": FrozenTextTower.tiny(sentences, device=device),
        REAL_TOWER: FrozenTextTower.load(REAL_TOWER, device=device),
    }
    records = []
    for done, (setting, fold) in enumerate((s, fold) for s in SETTINGS for fold in range(FOLDS)):
        if show is not None:
            show(f"{name}: models and folds", done, len(SETTINGS) * FOLDS)
        about = {"cohort": name, "setting": setting.name, "fold": fold, **vars(recipe), "outcome": _hash(cohort)}
        file = out / "runs" / f"{setting.name}-{fold}.json"
        record = _kept(file, about)
        if record is None:
            record = {"settings": about, **_fold(name, cohort, setting, fold, recipe, towers, device)}
            write_atomic(file, json.dumps(finite(record)) + "\n")
        records.append(record)
    if show is not None:
        show(f"{name}: models and folds", len(records), len(records))
    return records


def _fold(
    name: CohortName,
    cohort: Cohort,
    setting: Setting,
    fold: int,
    recipe: Recipe,
    towers: Mapping[str, FrozenTextTower],
    device: str,
) -> dict[str, Any]:
    from icfnet.sksurv_estimator import ICFNetSurvival
    from icfnet.sksurv_report import evaluate

    train, test = cohort.split(fold)
    like = ICFNetSurvival(modalities=("genes", "text"), text_model=towers[setting.tower or "tiny"], device=device)
    like.set_params(**vars(recipe))
    facts: tuple[str, ...] = ()
    if name == "gse7390":
        from icfnet.sksurv_gse7390 import FACTS

        facts = FACTS  # what the second sentence tells
    arm = "icfnet" if setting.arm == "permuted" else setting.arm
    model = make_arm(arm, like, facts=facts)
    fitted_on = permuted(train, fold) if setting.arm == "permuted" else train
    curve: list[float] = []
    if isinstance(model, ICFNetSurvival):
        curve = fit_with_curve(model, fitted_on, test)
    else:
        model.fit(fitted_on)
    report = evaluate(model, test, train=train, name=setting.name, resamples=0)
    return {
        **report.metrics,
        "best_epoch": max(curve) if curve else None,
        "warnings": list(report.warnings),
        "patients": [{"id": id, "risk": float(risk)} for id, risk in zip(test.ids, report.risk, strict=True)],
    }


def _hash(cohort: Cohort) -> str:
    return content_hash(cohort.time.tobytes() + cohort.event.tobytes() + "\0".join(cohort.ids).encode())[:16]


def _kept(file: Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record on disk, where it was made with the same settings."""
    if not file.is_file():
        return None
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record if record["settings"] == about else None

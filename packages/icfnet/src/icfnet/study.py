"""The paper's claims on a synthetic cohort, with the cohort of GSE7390 beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from aisec_common import Claim, Outcome, Scale, Study, TrialLog
from aisec_common.result import values_of
from aisec_common.stats import PairedMean

from icfnet.arms import ARMS as MODELS
from icfnet.arms import PEERS, fit_with_curve, make_arm, permuted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from icfnet.cohort import Cohort
    from icfnet.sksurv_estimator import ICFNetSurvival
    from icfnet.synthetic import SyntheticCohort

ARMS = (*MODELS, "oracle", "permuted")
"""The models, the true log-risk, and ICFNet on permuted training outcomes (the control)."""

QUICK = ("icfnet", "omic-only", "wsi-only", "clinical-only", "concat", "oracle", "permuted")
ON_GSE7390 = ("icfnet", "icfnet-nll", "omic-only", "clinical-only", *PEERS)
FLAGS: Mapping[str, Mapping[str, Any]] = {
    "isolated": {"token_mixing": "isolated"},
    "post-heads": {"aux_heads": "post"},
    "ordinal-race": {"race_encoding": "ordinal"},
}
"""What the released code or the paper's figure does otherwise (section 10)."""


@dataclass(frozen=True, kw_only=True)
class CohortScale(Scale):
    """Sizes, epochs and whether each is scored; test fifths of GSE7390; a smaller training set; flags."""

    patients: int = 900
    training: int = 500
    epochs: int = 15
    curve: bool = True
    gse7390_folds: int = 0
    fewer: int = 0
    flags: tuple[str, ...] = ()
    cohort_bins: bool = False


@dataclass(frozen=True, eq=False)
class Bench:
    """The cohort of one seed, its split, and the unfitted model whose settings all arms share."""

    made: SyntheticCohort
    train: Cohort
    test: Cohort
    model: ICFNetSurvival


def prepare(seed: int, scale: CohortScale) -> Bench:
    """The synthetic cohort of one seed, and one frozen text tower of random weights for all arms."""
    from icfnet.hf_text import FrozenTextTower
    from icfnet.sksurv_estimator import ICFNetSurvival
    from icfnet.synthetic import synthetic_cohort

    made = synthetic_cohort(seed, patients=scale.patients, training=scale.training)
    train, test = made.cohort.split(0)
    tower = FrozenTextTower.tiny([sentence for pair in train.text or () for sentence in pair or ()])
    model = ICFNetSurvival(
        text_model=tower,
        width=32,
        epochs=scale.epochs,
        batch_size=16,
        learning_rate=1e-3,
        optimizer="adamw",
        seed=seed,
    )
    return Bench(made, train, test, model)


def trial(arm: str, bench: Bench, seed: int, scale: CohortScale, log: TrialLog) -> dict[str, float]:
    """What one arm, trained to its last epoch, does on the test patients.

    c_index (Harrell), ipcw (Uno's C-index), ibs (integrated Brier score), logrank_p (halves of the risk); best_epoch:
    the highest C-index of any epoch on the same test patients, as the authors count. gse7390.METRIC: mean over the
    folds of that cohort, .c_index.K its folds. VARIANT.c_index and VARIANT.ibs: with fewer training patients, flags of
    the released code, time bins over the whole cohort.
    """
    from icfnet.bins import TimeBins
    from icfnet.sksurv_report import concordance

    log.data("outcome", np.concatenate([bench.made.cohort.time, bench.made.cohort.event]))
    if arm == "oracle":
        return {"c_index": concordance(bench.test.surv(), bench.made.log_risk[-len(bench.test) :])[0]}
    found = _measured(arm, bench.model, bench.train, bench.test, seed, log, curve=scale.curve)
    if scale.gse7390_folds and arm in ON_GSE7390:
        found |= _gse7390(arm, bench.model, scale.gse7390_folds, seed)
    variants: dict[str, tuple[Cohort, Mapping[str, Any]]] = {}
    if scale.fewer:
        variants[f"n{scale.fewer}"] = (bench.train.take(slice(scale.fewer)), {})
    if arm == "icfnet":
        variants |= {flag: (bench.train, FLAGS[flag]) for flag in scale.flags}
        if scale.cohort_bins:
            cohort = bench.made.cohort
            variants["cohort-bins"] = (bench.train, {"bins": TimeBins.fit(cohort.time, cohort.event).edges})
    for name, (train, settings) in variants.items():
        measured = _measured(arm, bench.model, train, bench.test, seed, None, settings=settings)
        found |= {f"{name}.{metric}": measured[metric] for metric in ("c_index", "ibs")}
    return found


def _measured(
    arm: str,
    like: ICFNetSurvival,
    train: Cohort,
    test: Cohort,
    seed: int,
    log: TrialLog | None,
    *,
    curve: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Fits an arm and evaluates it; with a log it tells its progress and keeps each patient's risk."""
    from sklearn.base import clone

    from icfnet.sksurv_estimator import ICFNetSurvival
    from icfnet.sksurv_report import evaluate

    model = make_arm("icfnet" if arm == "permuted" else arm, clone(like).set_params(**settings or {}))
    fitted_on = permuted(train, seed) if arm == "permuted" else train
    show = None if log is None else lambda what, done, total: log.progress(done, total)
    best: dict[str, float] = {}
    if curve and isinstance(model, ICFNetSurvival):
        best["best_epoch"] = max(fit_with_curve(model, fitted_on, test, show=show))
    else:
        model.fit(fitted_on, show=show)
    report = evaluate(model, test, train=train, name=arm, resamples=0)
    if log is not None:
        for name, risk, time, event in zip(test.ids, report.risk, test.time, test.event, strict=True):
            log.sample(name, risk=float(risk), time=float(time), event=bool(event))
    return report.metrics | best


def _gse7390(arm: str, like: ICFNetSurvival, folds: int, seed: int) -> dict[str, float]:
    """The missing-modality path: genes and text, no slide; means over so many fifths as test patients."""
    from sklearn.base import clone

    from icfnet.sksurv_gse7390 import FACTS, load_gse7390
    from icfnet.sksurv_report import evaluate

    cohort = load_gse7390(seed=seed)  # fifths, drawn anew for each seed
    reports = []
    for fold in range(folds):
        train, test = cohort.split(fold)
        model = make_arm(arm, clone(like).set_params(text_model="tiny"), facts=FACTS)
        reports.append(evaluate(model.fit(train), test, train=train, name=arm, resamples=0))
    found = {f"gse7390.{metric}": float(np.mean([r.metrics[metric] for r in reports])) for metric in ("c_index", "ibs")}
    return found | {f"gse7390.c_index.{fold}": report.c_index for fold, report in enumerate(reports)}


def concordances(outcomes: Mapping[int, Mapping[str, Outcome]]) -> Figure:
    """C-index of every arm on the synthetic test patients, a dot a seed, with its 95 % interval over seeds."""
    from matplotlib.figure import Figure

    shown = [arm for arm in ARMS if values_of(outcomes, arm, "c_index")]
    figure = Figure(figsize=(6, 0.32 * len(shown) + 1.0), layout="constrained")
    axes = figure.subplots()
    for y, arm in enumerate(reversed(shown)):
        seeds = values_of(outcomes, arm, "c_index")
        if len(seeds) > 1:
            axes.plot(PairedMean(seeds).interval(0.95), [y, y], "-", color="C3")
        axes.plot(seeds, [y] * len(seeds), "o", color="C7", markersize=3, alpha=0.6)
        axes.plot([np.mean(seeds)], [y], "|", color="C3", markersize=12)
    axes.set_yticks(range(len(shown)), list(reversed(shown)), fontsize="small")
    axes.axvline(0.5, color="k", linewidth=0.8, linestyle=":")
    axes.set(xlabel="C-index, last epoch")
    axes.grid(axis="x", alpha=0.3)
    return figure


def discrimination_and_brier(outcomes: Mapping[int, Mapping[str, Outcome]]) -> Figure:
    """C-index against integrated Brier score, means over seeds: the losses differ in both."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for arm in ARMS:
        x, y = (values_of(outcomes, arm, metric) for metric in ("ibs", "c_index"))
        if x and y:
            axes.plot([np.mean(x)], [np.mean(y)], "o")
            axes.annotate(
                arm, (float(np.mean(x)), float(np.mean(y))), fontsize=7, xytext=(3, 3), textcoords="offset points"
            )
    axes.set(xlabel="integrated Brier score (lower is better)", ylabel="C-index")
    axes.grid(alpha=0.3)
    return figure


def kaplan_meier(outcomes: Mapping[int, Mapping[str, Outcome]]) -> Figure:
    """Survival of the halves above and below the median risk, test patients of the first seed."""
    from icfnet.report import kaplan_meier_figure
    from icfnet.sksurv_report import risk_halves

    first = outcomes[min(outcomes)] if outcomes else {}
    curves, p_values = {}, {}
    for arm in ("icfnet", "concat", "permuted"):
        if arm not in first or not first[arm].samples:
            continue
        samples = list(first[arm].samples.values())
        outcome = np.array([(s["event"], s["time"]) for s in samples], dtype=[("event", "?"), ("time", "<f8")])
        curves[arm], p_values[arm] = risk_halves(outcome, np.array([s["risk"] for s in samples]))
    return kaplan_meier_figure(curves, p_values)


def _better(text: str, *, over: str, margin: float = 0.0, paper: str = "") -> Claim:
    return Claim(text=text, metric="c_index", arm="icfnet", over=over, control="permuted", margin=margin, paper=paper)


STUDY = Study(
    room="icfnet",
    trial=trial,
    prepare=prepare,
    arms=ARMS,
    scales={
        "quick": CohortScale(seeds=3, arms=QUICK, epochs=10, curve=False),
        "standard": CohortScale(seeds=8, gse7390_folds=1),
        "full": CohortScale(seeds=20, gse7390_folds=5, fewer=280, flags=tuple(FLAGS), cohort_bins=True),
    },
    figures=(concordances, kaplan_meier, discrimination_and_brier),
    # over the best fixed single modality, whichever it is: over each of the three
    claims=(
        _better("integration: three modalities beat genes alone", over="omic-only", margin=0.03),
        _better("integration: three modalities beat tissue alone", over="wsi-only", margin=0.03),
        _better("integration: three modalities beat clinical text alone", over="clinical-only", margin=0.03),
        _better(
            "ICFNet beats late fusion by concatenation",
            over="concat",
            paper="above MCAT and MOTCat on five TCGA cohorts",
        ),
        _better("the balanced likelihood beats the standard one", over="icfnet-nll"),
    ),
)

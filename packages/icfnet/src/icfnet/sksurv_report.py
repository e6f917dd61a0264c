"""Evaluation of a survival model with scikit-survival's metrics: discrimination, calibration, subgroups."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from aisec_common.seeding import numpy_rng
from aisec_common.study import content_hash
from numpy.typing import ArrayLike, NDArray
from sksurv.compare import compare_survival
from sksurv.metrics import (
    concordance_index_censored,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
    integrated_brier_score,
)
from sksurv.nonparametric import kaplan_meier_estimator

from icfnet.cohort import TREATMENT, Cohort, known_rows
from icfnet.report import SMALL, TREATMENT_WARNING, Curve, FloatArray, SurvivalReport

TIED = 1e-8
GRID = 20  # evaluation times


class SurvivalModel(Protocol):
    """What can be evaluated: the contract of scikit-survival, on cohorts."""

    def predict(self, X: Cohort) -> NDArray[Any]:
        """Risk `[n]`, higher for an earlier event."""

    def predict_survival_function(self, X: Cohort) -> NDArray[Any]:
        """Survival functions of time in months `[n]`, each with a `domain`."""


def evaluate(
    model: SurvivalModel,
    test: Cohort,
    *,
    train: Cohort,
    name: str = "ICFNet",
    times: Literal["auto"] | ArrayLike = "auto",
    groups: Sequence[str] = ("sex", "race"),
    resamples: int = 500,
    seed: int = 0,
) -> SurvivalReport:
    """Everything the report holds, on patients the model was not trained on (section 6).

    Patients followed longer than the censoring of the training cohort is known for count as censored there in the
    weighted scores (IPCW C-index, AUC, Brier score).

    Args:
        model: fitted.
        test: the patients to judge it on.
        train: the patients it was fitted to: the weights come from their censoring.
        name: of the model.
        times: months to evaluate survival at; "auto" takes 20 between the 10th and 90th percentile of event times.
        groups: columns of `test.groups`; those it does not have are left out.
        resamples: bootstrap samples of the interval of the C-index.
        seed: of the bootstrap.

    Returns:
        The report; its `compare` fits baselines to `train`.

    Raises:
        ValueError: for a test cohort without an event or comparable pair, with patients the model or the baselines were
            trained on, or with treatments where the model saw none; for times out of reach.

    >>> from icfnet.sksurv_baselines import CoxnetBaseline
    >>> from icfnet.synthetic import synthetic_cohort
    >>> train, test = synthetic_cohort(0, patients=160, training=120).cohort.split(0)
    >>> report = evaluate(CoxnetBaseline().fit(train), test, train=train, name="coxnet", resamples=20)
    >>> report.n, 0.5 < report.c_index < 1, list(report.metrics)
    (40, True, ['c_index', 'ipcw', 'auc', 'ibs', 'logrank_p'])
    """
    if not test.event.any():
        raise ValueError("test must have at least one event")
    require_unseen(model, test, train)
    risk = np.asarray(model.predict(test), dtype=np.float64)
    outcome = test.surv()
    reach = _reach(train)
    clipped = _clipped(test, reach)
    grid = _times(test, reach) if isinstance(times, str) else _checked_times(times, clipped)
    survival = survival_at(model, test, grid)
    c_index, pairs = concordance(outcome, risk)
    if pairs == 0:
        raise ValueError("test must have at least one comparable pair")
    draws = bootstrap_concordance(outcome, risk, resamples=resamples, seed=seed)
    low, high = np.nanquantile(draws, [0.025, 0.975]) if resamples else (np.nan, np.nan)
    middle = len(grid) // 2
    curves, p_value = risk_halves(outcome, risk)
    return SurvivalReport(
        name=name,
        n=len(test),
        events=int(test.event.sum()),
        c_index=c_index,
        c_low=float(low),
        c_high=float(high),
        ipcw=float(concordance_index_ipcw(train.surv(), clipped, risk, tied_tol=TIED)[0]),
        auc=_auc(train.surv(), clipped, risk, grid),
        ibs=float(integrated_brier_score(train.surv(), clipped, survival, grid)),
        logrank_p=p_value,
        times=grid,
        horizon=float(grid[middle]),
        calibration=_calibration(outcome, survival[:, middle], float(grid[middle])),
        subgroups=_subgroups(test, risk, survival[:, middle], float(grid[middle]), groups),
        curves=curves,
        risk=risk,
        draws=draws,
        warnings=(TREATMENT_WARNING,) if uses_treatment(model, test) else (),
        refit=partial(_refit, model, test, train, times, tuple(groups), resamples, seed),
    )


def concordance(outcome: NDArray[np.void], risk: FloatArray) -> tuple[float, int]:
    """Harrell's C-index and the number of comparable pairs; NaN and 0 where there is none.

    >>> outcome = np.array([(True, 1.0), (False, 2.0)], dtype=[("event", "?"), ("time", "<f8")])
    >>> concordance(outcome, np.array([2.0, 1.0]))
    (1.0, 1)
    """
    if len(outcome) < 2 or not outcome["event"].any():
        return np.nan, 0
    try:
        found = concordance_index_censored(outcome["event"], outcome["time"], risk, tied_tol=TIED)
    except ValueError:  # no comparable pair
        return np.nan, 0
    return float(found[0]), int(found[1] + found[2] + found[3])


def bootstrap_concordance(outcome: NDArray[np.void], risk: FloatArray, *, resamples: int, seed: int) -> FloatArray:
    """The C-index of resampled patients `[resamples]`; one seed draws the same patients for every model."""
    rng = numpy_rng(seed, "icfnet", "bootstrap")
    rows = rng.integers(len(risk), size=(resamples, len(risk)))
    return np.array([concordance(outcome[each], risk[each])[0] for each in rows])


def survival_at(model: SurvivalModel, cohort: Cohort, times: FloatArray) -> FloatArray:
    """S(t) of each patient `[n, t]`; beyond the times a function knows, its nearest value."""
    functions = model.predict_survival_function(cohort)
    return np.stack([function(np.clip(times, *function.domain)) for function in functions])


def risk_halves(outcome: NDArray[np.void], risk: FloatArray) -> tuple[tuple[Curve, ...], float]:
    """Kaplan-Meier curves of the halves below and above the median risk, and the log-rank p (NaN for one half)."""
    higher = risk > np.median(risk)
    if higher.all() or not higher.any():
        return (_curve("all", outcome),), np.nan
    curves = (_curve("lower risk", outcome[~higher]), _curve("higher risk", outcome[higher]))
    return curves, float(compare_survival(outcome, higher)[1])


def require_unseen(model: object, test: Cohort, train: Cohort) -> None:
    """Refuses test patients whom the model or its baselines were trained on, and treatments the model never saw.

    Raises:
        ValueError: saying how many patients, or how to leave the treatments out.
    """
    trained_on: frozenset[str] = getattr(model, "trained_on_", frozenset())
    if known := sum(content_hash(name) in trained_on for name in test.ids):
        raise ValueError(
            f"test: the model was trained on {known} of these {len(test)} patients; "
            "give the fold that was left out (--fold), or train without them"
        )
    if known := len(set(test.ids) & set(train.ids)):
        raise ValueError(f"test: {known} of these {len(test)} patients are in train too; leave them out of one")
    if not getattr(model, "treatment_", True) and uses_treatment(model, test):
        raise ValueError(
            "test tells of treatments and the model was trained without; "
            'give test.without("treatment") (--without-treatment)'
        )


def uses_treatment(model: object, cohort: Cohort) -> bool:
    """Whether what the model reads of these patients tells of a treatment."""
    if "text" not in getattr(model, "modalities", ("text",)):
        return False
    told = cohort.structured is not None and bool((cohort.structured[:, TREATMENT] != -1).any())
    return told or any(pair is not None and "treatment" in pair[1] for pair in cohort.text or ())


def _refit(
    model: SurvivalModel,
    test: Cohort,
    train: Cohort,
    times: Literal["auto"] | ArrayLike,
    groups: tuple[str, ...],
    resamples: int,
    seed: int,
    arm: str,
) -> SurvivalReport:
    from icfnet.arms import PEERS, make_arm  # arms are evaluated by this module

    made = make_arm(arm, model)
    if arm not in PEERS:  # they fill in means
        for name, cohort in (("train", train), ("test", test)):
            nobody = np.flatnonzero(~known_rows(cohort, made.modalities))
            if len(nobody):
                raise ValueError(
                    f"arm {arm!r} reads {', '.join(made.modalities)}, of which {len(nobody)} of {len(cohort)} patients "
                    f"of {name}, such as {cohort.ids[nobody[0]]!r}, have none; leave out the arm or these patients"
                )
    fitted = made.fit(train)
    return evaluate(fitted, test, train=train, name=arm, times=times, groups=groups, resamples=resamples, seed=seed)


def _reach(train: Cohort) -> float:
    """The last time at which the training cohort's censoring distribution is known and positive."""
    time, uncensored = kaplan_meier_estimator(train.event, train.time, reverse=True)
    return float(time[uncensored > 0].max())


def _clipped(test: Cohort, reach: float) -> NDArray[np.void]:
    outcome = test.surv()
    outcome["event"] &= outcome["time"] <= reach
    outcome["time"] = np.minimum(outcome["time"], reach)
    return outcome


def _times(test: Cohort, reach: float) -> FloatArray:
    low, high = np.quantile(test.time[test.event], [0.1, 0.9])
    high = min(high, 0.99 * min(reach, test.time.max()))
    low = min(max(low, test.time.min()), 0.5 * high)
    if low < test.time.min():
        raise ValueError("test: its follow-up is too short for evaluation times; give `times`")
    return np.linspace(low, high, GRID)


def _checked_times(times: ArrayLike, outcome: NDArray[np.void]) -> FloatArray:
    grid = np.unique(np.asarray(times, dtype=np.float64))
    first, last = outcome["time"].min(), outcome["time"].max()
    if len(grid) < 2 or not (first <= grid[0] and grid[-1] < last):
        raise ValueError(
            f"times must be at least 2 distinct months in [{first:g}, {last:g}), the reach of both cohorts"
        )
    return grid


def _auc(known: NDArray[np.void], outcome: NDArray[np.void], risk: FloatArray, grid: FloatArray) -> float:
    """The mean over the times by which there was an event; NaN where there is none."""
    times = grid[grid >= outcome["time"][outcome["event"]].min()]
    return float(cumulative_dynamic_auc(known, outcome, risk, times, tied_tol=TIED)[1]) if len(times) else np.nan


def _observed(outcome: NDArray[np.void], horizon: float) -> float:
    """The Kaplan-Meier estimate at a time."""
    time, survival = kaplan_meier_estimator(outcome["event"], outcome["time"])
    at = np.searchsorted(time, horizon, side="right") - 1
    return float(survival[at]) if at >= 0 else 1.0


def _calibration(outcome: NDArray[np.void], predicted: FloatArray, horizon: float) -> pd.DataFrame:
    """Quarters of the predicted survival; fewer where predictions are tied."""
    edges = np.unique(np.quantile(predicted, [0.25, 0.5, 0.75]))
    part = np.searchsorted(edges, predicted, side="right")
    rows = []
    for number in np.unique(part):
        chosen = part == number
        rows.append(
            {
                "quarter of predicted survival": int(number) + 1,
                "n": int(chosen.sum()),
                "predicted": float(predicted[chosen].mean()),
                "observed": _observed(outcome[chosen], horizon),
            }
        )
    return pd.DataFrame(rows)


def _subgroups(
    test: Cohort, risk: FloatArray, predicted: FloatArray, horizon: float, groups: Sequence[str]
) -> pd.DataFrame:
    rows = []
    outcome = test.surv()
    for column in (name for name in groups if name in test.groups):
        values = test.groups[column].to_numpy()
        for value in pd.unique(values):
            chosen = values == value
            c_index, pairs = concordance(outcome[chosen], risk[chosen])
            rows.append(
                {
                    "group": column,
                    "value": str(value),
                    "n": int(chosen.sum()),
                    "events": int(test.event[chosen].sum()),
                    "pairs": pairs,
                    "C-index": c_index if pairs >= SMALL else np.nan,
                    "predicted": float(predicted[chosen].mean()),
                    "observed": _observed(outcome[chosen], horizon),
                }
            )
    columns = ["group", "value", "n", "events", "pairs", "C-index", "predicted", "observed"]
    return pd.DataFrame(rows, columns=columns)


def _curve(label: str, outcome: NDArray[np.void]) -> Curve:
    time, survival, band = kaplan_meier_estimator(outcome["event"], outcome["time"], conf_type="log-log")
    return Curve(label=label, n=len(outcome), time=time, survival=survival, low=band[0], high=band[1])

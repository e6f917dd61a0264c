from dataclasses import replace

import numpy as np
import pytest
from aisec_common.study import content_hash
from sksurv.functions import StepFunction
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import (
    concordance_index_censored,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
    integrated_brier_score,
)
from small_cohort import small_cohort

from icfnet.report import TREATMENT_WARNING
from icfnet.sksurv_estimator import ICFNetSurvival
from icfnet.sksurv_report import bootstrap_concordance, concordance, evaluate, risk_halves, survival_at, uses_treatment
from icfnet.synthetic import synthetic_cohort

MADE = synthetic_cohort(0, patients=300, training=180)
TRAIN, TEST = MADE.cohort.split(0)
LOG_RISK = dict(zip(MADE.cohort.ids, MADE.log_risk, strict=True))


class Oracle:
    """A Cox model on the true log-risk, with the contract of a model of cohorts."""

    def __init__(self, train, *, sign=1.0):
        self.sign = sign
        self.cox = CoxPHSurvivalAnalysis().fit(self.table(train), train.surv())

    def table(self, cohort):
        return np.array([[self.sign * LOG_RISK[name]] for name in cohort.ids])

    def predict(self, cohort):
        return self.cox.predict(self.table(cohort)) * self.sign

    def predict_survival_function(self, cohort):
        return self.cox.predict_survival_function(self.table(cohort))


@pytest.fixture(scope="module")
def report():
    return evaluate(Oracle(TRAIN), TEST, train=TRAIN, name="oracle", resamples=60)


def pairs_by_hand(time, event, risk):
    score = total = 0.0
    for i in range(len(time)):
        for j in range(len(time)):
            if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                total += 1
                score += 1.0 if risk[i] > risk[j] + 1e-8 else 0.5 if abs(risk[i] - risk[j]) <= 1e-8 else 0.0
    return score / total, total


def test_the_c_index_counts_the_pairs():
    rng = np.random.default_rng(0)
    risk = rng.integers(4, size=len(TEST)).astype(float)
    expected = pairs_by_hand(TEST.time, TEST.event, risk)
    assert concordance(TEST.surv(), risk) == pytest.approx(expected)
    assert concordance(TEST.surv(), risk)[0] == concordance_index_censored(TEST.event, TEST.time, risk)[0]


def test_no_pair_is_no_c_index():
    for rows in ([0], [i for i in range(len(TEST)) if not TEST.event[i]][:5]):
        some = TEST.take(rows)
        value, pairs = concordance(some.surv(), np.zeros(len(some)))
        assert np.isnan(value)
        assert pairs == 0


def test_scores_are_those_of_scikit_survival(report):
    # the test patients followed longer than the training ones would need a weight that nobody knows
    reach = TRAIN.time[~TRAIN.event].max()
    inside = TEST.take(TEST.time <= reach)
    model = Oracle(TRAIN)
    within = evaluate(model, inside, train=TRAIN, resamples=0)
    survival = survival_at(model, inside, within.times)
    assert within.ipcw == pytest.approx(concordance_index_ipcw(TRAIN.surv(), inside.surv(), model.predict(inside))[0])
    assert within.ibs == pytest.approx(integrated_brier_score(TRAIN.surv(), inside.surv(), survival, within.times))
    auc = cumulative_dynamic_auc(TRAIN.surv(), inside.surv(), model.predict(inside), within.times)[1]
    assert within.auc == pytest.approx(auc)
    assert within.c_index == concordance(inside.surv(), model.predict(inside))[0]
    assert report.ibs < 0.2
    assert report.c_index > 0.7


def test_follow_up_beyond_the_training_cohort_is_clipped():
    short = TRAIN.take(TRAIN.time < 15)
    report = evaluate(Oracle(short), TEST, train=short, resamples=0)
    assert report.times.max() < 15
    assert 0 < report.ibs < 0.4
    assert report.ipcw > 0.6


def test_given_times_are_checked():
    model = Oracle(TRAIN)
    assert evaluate(model, TEST, train=TRAIN, times=[5, 10, 20], resamples=0).horizon == 10
    for times in ([5], [5, 9999], [-1, 5]):
        with pytest.raises(ValueError, match="times must be"):
            evaluate(model, TEST, train=TRAIN, times=times, resamples=0)


def test_a_cohort_that_tells_nothing_is_refused():
    censored = TEST.take(~TEST.event)
    with pytest.raises(ValueError, match="at least one event"):
        evaluate(Oracle(TRAIN), censored, train=TRAIN)


def test_the_auc_is_of_times_that_an_event_precedes():
    late = TEST.take((TEST.time >= np.sort(TEST.time)[20]) | ~TEST.event)
    model, before, first = Oracle(TRAIN), late.time.min(), late.time[late.event].min()
    assert before < first
    with_early = evaluate(model, late, train=TRAIN, times=[before, 10, 20], resamples=0)
    assert with_early.auc == evaluate(model, late, train=TRAIN, times=[10, 20], resamples=0).auc > 0.6
    nothing = evaluate(model, late, train=TRAIN, times=[before, (before + first) / 2], resamples=0)
    assert np.isnan(nothing.auc)


def test_patients_who_were_trained_on_are_refused():
    with pytest.raises(ValueError, match="2 of these 3 patients are in train too"):
        evaluate(Oracle(TRAIN), TRAIN.take([0, 1, 2]), train=TRAIN.take(slice(1, None)))
    model = Oracle(TRAIN)
    model.trained_on_ = frozenset(map(content_hash, TRAIN.ids))
    both = MADE.cohort.take(np.r_[0:5, 180:200])
    with pytest.raises(ValueError, match=r"the model was trained on 5 of these 25 patients; .*--fold"):
        evaluate(model, both, train=TRAIN.take(slice(5, None)))
    assert evaluate(model, TEST, train=TRAIN, resamples=0).n == 120


def test_treatments_that_a_model_never_saw_are_refused():
    model = Oracle(TRAIN)
    model.treatment_ = False
    with pytest.raises(ValueError, match=r'trained without; give test\.without\("treatment"\)'):
        evaluate(model, TEST, train=TRAIN)
    assert evaluate(model, TEST.without("treatment"), train=TRAIN, resamples=0).warnings == ()
    model.treatment_ = True
    assert evaluate(model, TEST, train=TRAIN, resamples=0).warnings == (TREATMENT_WARNING,)


def test_an_arm_that_a_patient_gives_nothing_to_read_is_refused_before_it_is_fitted(monkeypatch):
    train, test = small_cohort(40), small_cohort(30, seed=1, ids=tuple(f"q{i}" for i in range(30)))
    test = replace(test, bags=(*test.bags[:-2], None, None))
    model = ICFNetSurvival(width=8, heads=2, layers=1, epochs=1).fit(train)
    report = evaluate(model, test, train=train, resamples=0)
    monkeypatch.setattr(ICFNetSurvival, "fit", None)
    with pytest.raises(ValueError, match=r"arm 'wsi-only' reads wsi, of which 2 of 30 patients of test, such as 'q28'"):
        report.compare("wsi-only")


def test_the_interval_is_that_of_resampled_patients(report):
    assert report.c_low < report.c_index < report.c_high
    draws = bootstrap_concordance(TEST.surv(), report.risk, resamples=60, seed=0)
    assert np.array_equal(draws, report.draws)
    assert 0.005 < draws.std() < 0.06


def test_calibration_of_the_truth_is_near(report):
    table = report.calibration
    assert table["n"].sum() == len(TEST)
    assert table["predicted"].is_monotonic_increasing
    assert np.abs(table["predicted"] - table["observed"]).max() < 0.2


def test_small_subgroups_have_no_c_index():
    few = TEST.take(range(8))
    by_sex = evaluate(Oracle(TRAIN), few, train=TRAIN, groups=["sex", "nosuch"], resamples=0).subgroups
    assert set(by_sex["group"]) == {"sex"}
    assert by_sex["n"].sum() == 8
    assert (by_sex["C-index"].isna() == (by_sex["pairs"] < 20)).all()
    assert by_sex["C-index"].isna().any()
    large = evaluate(Oracle(TRAIN), TEST, train=TRAIN, resamples=0).subgroups
    women = TEST.take(TEST.groups["sex"].to_numpy() == "woman")
    row = large[(large["group"] == "sex") & (large["value"] == "woman")].iloc[0]
    assert row["C-index"] == concordance(women.surv(), Oracle(TRAIN).predict(women))[0]


def test_halves_of_a_good_risk_part_and_of_a_constant_one_do_not():
    outcome = TEST.surv()
    (low, high), p_value = risk_halves(outcome, Oracle(TRAIN).predict(TEST))
    assert p_value < 1e-4
    assert low.n + high.n == len(TEST)
    assert low.survival[len(low.survival) // 2] > high.survival[len(high.survival) // 2]
    assert (low.low <= low.survival).all()
    (only,), p_value = risk_halves(outcome, np.ones(len(TEST)))
    assert only.n == len(TEST)
    assert np.isnan(p_value)


def test_survival_beyond_its_domain_is_its_nearest_value():
    class Step:
        def predict_survival_function(self, cohort):
            return [StepFunction(np.array([2.0, 4.0]), np.array([0.9, 0.5]), domain=(0, 4.0))] * len(cohort)

    assert survival_at(Step(), TEST.take([0]), np.array([1.0, 3.0, 99.0])).tolist() == [[0.9, 0.9, 0.5]]


def test_a_treatment_that_is_read_is_warned_of(report):
    assert report.warnings == (TREATMENT_WARNING,)
    assert "immortal" in report.to_markdown()
    without = TEST.without("treatment")
    assert evaluate(Oracle(TRAIN), without, train=TRAIN, resamples=0).warnings == ()
    genes = type("Genes", (), {"modalities": ("genes",)})()
    assert not uses_treatment(genes, TEST)
    assert uses_treatment(genes.__class__.__base__(), TEST)

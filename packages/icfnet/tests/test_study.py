from dataclasses import replace

import numpy as np
import pytest
from aisec_common import Outcome
from aisec_common.result import outcomes_of, read_records
from aisec_common.rooms import choose_rooms
from aisec_common.runner import plan, run
from aisec_common.testing import MemoryLog
from aisec_common.verdict import judge

from icfnet.study import (
    ARMS,
    FLAGS,
    ON_GSE7390,
    STUDY,
    CohortScale,
    concordances,
    discrimination_and_brier,
    kaplan_meier,
    prepare,
    trial,
)


def scale(**changes):
    return CohortScale(**({"seeds": 1, "patients": 90, "training": 60, "epochs": 1} | changes))


@pytest.fixture(scope="module")
def bench():
    made = prepare(0, scale())
    made.model.set_params(width=8, heads=2, layers=1)
    return made


def test_metrics_of_an_arm(bench):
    log = MemoryLog()
    found = trial("clinical-only", bench, 0, scale(epochs=1), log)
    assert set(found) == {"c_index", "ipcw", "auc", "ibs", "logrank_p", "best_epoch"}
    assert found["best_epoch"] >= found["c_index"]
    assert set(log.samples) == set(bench.test.ids)
    assert log.done == [1.0]
    assert "outcome" in log.hashes
    assert found == trial("clinical-only", bench, 0, scale(epochs=1), MemoryLog())


def test_without_the_curve_the_numbers_stay(bench):
    with_curve, without = (trial("omic-only", bench, 0, scale(curve=curve), MemoryLog()) for curve in (True, False))
    assert with_curve.pop("best_epoch") == with_curve["c_index"]  # one epoch
    assert with_curve == without


def test_the_control_learns_from_permuted_outcomes_and_is_judged_on_true_ones(bench):
    log = MemoryLog()
    trial("permuted", bench, 0, scale(curve=False), log)
    assert [log.samples[name]["time"] for name in bench.test.ids] == bench.test.time.tolist()


def test_the_oracle_is_the_true_risk(bench):
    assert trial("oracle", bench, 0, scale(), MemoryLog())["c_index"] > 0.7


def test_gse7390_folds_and_variants(bench):
    found = trial("coxnet", bench, 0, scale(gse7390_folds=2, fewer=40), MemoryLog())
    folds = [found[f"gse7390.c_index.{fold}"] for fold in range(2)]
    assert found["gse7390.c_index"] == pytest.approx(np.mean(folds))
    assert {"n40.c_index", "n40.ibs"} <= set(found)
    found = trial("icfnet", bench, 0, scale(curve=False, flags=tuple(FLAGS), cohort_bins=True), MemoryLog())
    assert {f"{name}.c_index" for name in (*FLAGS, "cohort-bins")} <= set(found)


def test_scales_run_what_claims_need():
    needed = {arm for claim in STUDY.claims for arm in (claim.arm, claim.over, claim.control)}
    assert needed <= set(STUDY.runnable_arms("standard"))
    assert set(ON_GSE7390) <= set(ARMS)
    assert needed - {"icfnet-nll"} <= set(STUDY.runnable_arms("quick"))


def test_figures_show_every_arm_that_was_run():
    samples = {str(i): {"risk": float(-i), "time": float(i + 1), "event": i % 3 > 0} for i in range(12)}
    outcomes = {
        seed: {
            arm: Outcome(metrics={"c_index": 0.6 + seed / 50, "ibs": 0.2}, samples=samples)
            for arm in ("icfnet", "permuted")
        }
        for seed in range(3)
    }
    axes = concordances(outcomes).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["permuted", "icfnet"]
    assert len(kaplan_meier(outcomes).axes) == 2
    assert {text.get_text() for text in discrimination_and_brier(outcomes).axes[0].texts} == {"icfnet", "permuted"}


@pytest.mark.slow
def test_the_quick_study(tmp_path):
    (room,) = choose_rooms(["icfnet"])
    (task, other), _ = plan({room: STUDY}, tmp_path, "quick", seeds=2)  # one a core
    # every arm once, and again what one claim is judged by
    assert run([task, replace(other, arms=("oracle", "icfnet", "concat", "permuted"))]) == []
    outcomes = outcomes_of(read_records(tmp_path, room.name))
    assert len(outcomes) == 2
    for by_arm in outcomes.values():
        assert by_arm["oracle"].metrics["c_index"] > 0.72
        assert by_arm["icfnet"].metrics["c_index"] > 0.5
    assert set(outcomes[0]) == set(STUDY.runnable_arms("quick"))
    judged = {judgement.claim.over: judgement for judgement in judge(STUDY, outcomes)}
    assert judged["concat"].n == 2
    assert "no outcome for icfnet-nll" in judged["icfnet-nll"].reason

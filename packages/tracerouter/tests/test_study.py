import pytest
from aisec_common import Outcome
from aisec_common.result import outcomes_of, read_records
from aisec_common.rooms import choose_rooms
from aisec_common.runner import plan, run
from aisec_common.testing import MemoryLog
from aisec_common.verdict import judge

from tracerouter.arms import ARMS, SITES
from tracerouter.study import ALL, STUDY, TraceScale, effects, frontiers, onset_curves, trial

pytestmark = pytest.mark.filterwarnings("ignore:no local peak", "ignore:scores have no elbow")


def scale(**changes):
    return TraceScale(**({"seeds": 1, "budgets": {"resid": (None, 3), "branches": (2,)}} | changes))


def test_metrics_of_an_arm(bench):
    log = MemoryLog()
    found = trial("path", bench, 0, scale(), log)
    for place in ("resid.elbow", "resid.3", "branches.2"):
        assert found[f"{place}.j"] == pytest.approx(found[f"{place}.utility"] - found[f"{place}.asr"])
        assert found[f"{place}.units"] > 0
    assert found["resid.j"] == found["resid.elbow.j"]
    assert found["resid.stopped_shifted"] == 1 - found["resid.3.asr_shifted"]
    assert (found["resid.k"], found["branches.k"]) == (3, 2)
    assert found["resid.k_keeps_utility"] in (0, 1)
    assert {f"onset.{score}" for score in ("flow", "js")} <= set(found)
    assert len([name for name in found if name.startswith("onset.flow.")]) == 3
    assert log.done[-1] == 1
    direct = [log.samples[f"resid.flagged.{i}"]["attacked"] for i in range(20)]
    assert sum(direct) / 20 == pytest.approx(found["resid.3.asr"])
    assert set(log.hashes) == {"pairs", "flagged"}


def test_arms_without_a_budget_are_measured_once(bench):
    log = MemoryLog()
    found = trial("none", bench, 0, scale(), log)
    assert found["resid.3.units"] == 0
    assert "resid.elbow.j" not in found
    assert found["resid.j"] == found["branches.j"] == bench.undefended.direct.gain
    assert found["resid.frontier"] == pytest.approx(
        (1 - bench.undefended.direct.attacks.value) * bench.undefended.direct.utility.value
    )


def test_sweeps_and_edges(bench):
    found = trial(
        "path", bench, 0, scale(budgets={"resid": (3,)}, gammas=(0.0, 0.5), saes=((64, 4),), edges=True), MemoryLog()
    )
    assert found["resid.gamma_0.j"] == found["resid.3.j"]
    assert {"resid.gamma_0.5.asr", "resid.sae_64_4.units", "resid.frontier_gamma"} <= set(found)
    assert 0 < found["resid.strongest_source"] <= 1
    swept = trial("source", bench, 0, scale(budgets={"resid": (3,)}, gammas=(0.0,)), MemoryLog())
    assert not any("gamma" in name for name in swept)


def test_the_same_seed_gives_the_same_numbers(bench):
    once, twice = (trial("random", bench, 0, scale(budgets={"branches": (4,)}), MemoryLog()) for _ in range(2))
    assert once == twice


def test_all_scales_name_known_sites_and_run_what_claims_need():
    for each in STUDY.scales.values():
        assert set(each.budgets) == set(SITES)
    needed = {arm for claim in STUDY.claims for arm in (claim.arm, claim.over, claim.control)}
    assert needed <= set(STUDY.runnable_arms("standard"))


def test_figures_show_every_arm_that_was_run():
    names = [f"{k}.{metric}_shifted" for k in ("elbow", "12") for metric in ("asr", "utility")]
    metrics = {f"{sites}.{name}": 0.5 for sites in SITES for name in names}
    metrics |= {f"{sites}.j": 0.1 for sites in SITES}
    curve = {f"onset.{score}.{layer}": layer / 10 for score in ("flow", "js") for layer in range(4)}
    onsets = {"onset.flow": 2.0, "onset.js": 1.0}
    outcomes = {
        seed: {"path": Outcome(metrics={**metrics, **curve, **onsets}), "none": Outcome(metrics=metrics)}
        for seed in range(3)
    }
    figure = frontiers(outcomes)
    assert [axes.get_title() for axes in figure.axes] == ["resid", "attn_out, mlp_out"]
    assert {line.get_label() for line in figure.axes[0].lines} == {"path", "none"}
    left, right = onset_curves(outcomes).axes
    assert list(left.lines[1].get_xdata()) == [2]
    assert list(right.lines[0].get_ydata()) == [0, 0.1, 0.2, 0.3]
    assert len(effects(outcomes).axes[0].get_yticklabels()) == len(ARMS)
    assert len(effects({}).axes) == len(onset_curves({}).axes) == 2


def test_the_elbow_comes_first_among_the_budgets():
    assert ALL == (None, 12, 24, 36, 48)


@pytest.mark.slow
def test_the_quick_study(tmp_path):
    (room,) = choose_rooms(["tracerouter"])
    tasks, _ = plan({room: STUDY}, tmp_path, "quick", seeds=2)  # one a core
    assert run(tasks) == []
    outcomes = outcomes_of(read_records(tmp_path, room.name))
    for by_arm in outcomes.values():
        assert by_arm["none"].metrics["resid.elbow.asr"] > 0.95
        assert by_arm["none"].metrics["resid.elbow.utility"] > 0.95
        assert set(by_arm) == set(STUDY.runnable_arms("quick"))
    judged = {judgement.claim.arm + "/" + judgement.claim.over: judgement for judgement in judge(STUDY, outcomes)}
    assert judged["path/none"].n == 2
    assert judged["path/none"].effect > 0.5
    assert "no outcome for printed_fis" in judged["path/printed_fis"].reason

from dataclasses import replace

import pytest
import torch
from aisec_common import Outcome
from aisec_common.result import outcomes_of, read_records
from aisec_common.rooms import choose_rooms
from aisec_common.runner import plan, run
from aisec_common.testing import MemoryLog
from aisec_common.verdict import judge

from interference_nn.arms import ARMS, Bench
from interference_nn.study import QUICK, STUDY, accuracy_by_rung, trial, worst_case_and_cost

SMALL = replace(STUDY.scales["quick"], images=20, epochs=1)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AISEC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Bench(0, epochs=1)


def test_metrics_of_the_method(bench):
    log = MemoryLog()
    found = trial("interference", bench, 0, SMALL, log)
    assert set(found) == {
        *("clean", "R1", "R3", "R5", "noise", "worst", "over_claim", "gap", "passes", "agreement"),
    }
    assert found["over_claim"] == pytest.approx(found["R1"] - found["worst"])
    assert found["gap"] == pytest.approx(found["R3"] - found["R5"])
    assert found["worst"] <= min(found[rung] for rung in ("clean", "R1", "R3", "R5"))
    assert len(log.samples) == 20
    assert sum(sample["worst"] for sample in log.samples.values()) / 20 == pytest.approx(found["worst"])
    assert set(log.hashes) == {"images"}


def test_further_radii_and_flags_are_named(bench):
    scale = replace(SMALL, eps=(0.1, 0.2), images=8, probes=4)
    found = trial("plain", bench, 0, scale, MemoryLog())
    assert {"worst@0.2", "R5@0.2", "F1", "F6", "masked"} <= set(found)
    assert found["masked"] == max(found[f"F{i}"] for i in range(1, 7))
    assert "agreement" not in found


def test_the_same_seed_gives_the_same_numbers(bench):
    once, twice = (trial("interference", bench, 0, SMALL, MemoryLog()) for _ in range(2))
    assert once == twice


def test_arms_of_the_scales():
    assert STUDY.scales["quick"].arms == QUICK
    assert set(STUDY.runnable_arms("full")) == set(ARMS)
    needed = {arm for claim in STUDY.claims[:4] for arm in (claim.arm, claim.over, claim.control)} - {None}
    assert needed <= set(STUDY.runnable_arms("standard"))
    assert {STUDY.scales[name].effort for name in ("quick", "standard", "full")} == {"quick", "standard", "full"}


def test_without_a_premise_nothing_is_decided():
    metrics = {"clean": 0.8, "worst": 0.5, "over_claim": 0.2, "gap": 0.1}
    rng = torch.Generator().manual_seed(0)
    outcomes = {
        seed: {
            arm: Outcome(
                metrics={name: v + 0.01 * float(torch.randn((), generator=rng)) for name, v in metrics.items()}
            )
            for arm in ARMS
        }
        for seed in range(8)
    }
    verdicts = [judgement.verdict for judgement in judge(STUDY, outcomes)]
    assert verdicts == ["fails", "undecided", "undecided", "undecided", "undecided"]


def test_figures_show_what_was_measured():
    metrics = {"clean": 1.0, "R1": 0.9, "R5": 0.4, "worst": 0.3, "passes": 50.0}
    outcomes = {seed: {"plain": Outcome(metrics=metrics), "mixup": Outcome(metrics={})} for seed in range(3)}
    (axes,) = accuracy_by_rung(outcomes).axes
    assert [line.get_label() for line in axes.lines] == ["plain"]
    assert list(axes.lines[0].get_ydata()) == pytest.approx([1.0, 0.9, 0.4, 0.3])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["clean", "R1", "R5", "worst"]
    assert worst_case_and_cost(outcomes).axes[0].get_legend().get_texts()[0].get_text() == "plain"
    assert worst_case_and_cost({}).axes


@pytest.mark.slow
def test_the_quick_study(tmp_path):
    (room,) = choose_rooms(["interference-nn"])
    tasks, _ = plan({room: STUDY}, tmp_path, "quick", seeds=2)  # one a core
    assert run(tasks) == []
    outcomes = outcomes_of(read_records(tmp_path, room.name))
    for by_arm in outcomes.values():
        assert by_arm["interference"].metrics["clean"] >= 0.95
        assert by_arm["interference"].metrics["over_claim"] > 0
        assert set(by_arm) == set(QUICK)
    judged = judge(STUDY, outcomes)
    assert judged[2].n == 2
    assert judged[1].verdict == "undecided"  # there is no PGD-AT at this scale

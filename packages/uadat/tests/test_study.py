import math

import pytest
import torch
from aisec_common import Outcome
from aisec_common.result import outcomes_of, read_records
from aisec_common.rooms import choose_rooms
from aisec_common.runner import plan, run
from aisec_common.seeding import numpy_rng
from aisec_common.testing import MemoryLog
from aisec_common.verdict import judge

from uadat import study
from uadat.arms import ARMS
from uadat.digits import digits
from uadat.network import small_resnet
from uadat.study import STUDY, RobustScale, accuracies, over_trades, trial

DATA = digits(0)
SMALL = RobustScale(seeds=1, epochs=1, images=40, attacks="quick", flags=True, radii=(0.5,))


@pytest.fixture
def model(monkeypatch):
    """In the place of a trained model: one that is right on most digits without a step of training would be luck."""
    made = small_resnet(10, seed=0).eval()
    monkeypatch.setattr(study, "trained_model", lambda *_, **__: made)
    return made


def test_metrics_and_samples_of_an_arm(model):
    log = MemoryLog()
    found = trial("trades", DATA, 0, SMALL, log)
    assert {"clean", "pgd_20", "apgd_ce", "apgd_t", "noise", "aa", "worst_case", "worst_case@0.5"} <= set(found)
    assert found["masked"] == 0
    assert found["aa"] == found["worst_case"] <= found["worst_case@0.5"] <= found["clean"]
    assert found["beta"] == 6
    assert set(log.hashes) == {"train", "validation", "test"}
    assert len(log.samples) == 40
    assert sum(sample["clean"] for sample in log.samples.values()) / 40 == pytest.approx(found["clean"])
    survived = [all(sample.values()) for sample in log.samples.values()]
    assert sum(survived) / 40 == pytest.approx(found["aa"])
    assert log.done[-1] == 1


def test_a_masked_arm_wins_nothing(model, monkeypatch):
    class Sharp(torch.nn.Module):
        def forward(self, images):
            return 1e5 * (images.flatten(1)[:, 20:30] - 0.5)

    monkeypatch.setattr(study, "trained_model", lambda *_, **__: Sharp())
    found = trial("trades", DATA, 0, SMALL, MemoryLog())
    assert found["masked"] == 1
    assert math.isnan(found["aa"])
    assert math.isfinite(found["worst_case"])


def test_scales_have_what_the_claims_need():
    needed = {arm for claim in STUDY.claims for arm in (claim.arm, claim.over, claim.control)} - {None}
    assert needed <= set(STUDY.runnable_arms("standard"))
    assert set(STUDY.runnable_arms("full")) == set(ARMS)
    control = [claim.control for claim in STUDY.claims if claim.text == "UAD is more robust than TRADES"]
    assert control == ["trades_reseeded"]
    assert STUDY.scales["standard"].flags
    assert STUDY.scales["quick"].seeds == 3


def test_uad_that_gains_no_more_than_a_new_seed_does_not_hold():
    values = {"standard": 0.1, "noise": 0.15, "at": 0.6, "trades": 0.7, "trades_reseeded": 0.73, "uad": 0.73}
    noise = numpy_rng(0, "noise").normal(0, 0.005, (8, len(values)))
    outcomes = {
        seed: {
            arm: Outcome(metrics=dict.fromkeys(("aa", "clean"), value + error))
            for (arm, value), error in zip(values.items(), errors, strict=True)
        }
        for seed, errors in enumerate(noise)
    }
    verdicts = {judgement.claim.text: judgement for judgement in judge(STUDY, outcomes)}
    assert verdicts["UAD is far more robust than standard training"].verdict == "holds"
    assert verdicts["TRADES is more robust than AT"].verdict == "holds"
    assert verdicts["UAD is more robust than TRADES"].verdict == "undecided"
    assert "control" in verdicts["UAD is more robust than TRADES"].reason


def test_figures_show_every_arm_that_was_run():
    metrics = {"clean": 0.9, "pgd_20": 0.8, "worst_case": 0.7}
    outcomes = {
        seed: {
            "trades": Outcome(metrics={name: value + seed / 50 for name, value in metrics.items()}),
            "uad": Outcome(metrics={name: value + seed / 40 for name, value in metrics.items()}),
            "mart": Outcome(metrics={}),
        }
        for seed in range(3)
    }
    figure = accuracies(outcomes)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["uad", "trades"]
    (axes,) = over_trades(outcomes).axes
    assert [line.get_label() for line in axes.lines if not line.get_label().startswith("_")] == ["uad"]
    assert len(accuracies({}).axes) == 3
    assert len(over_trades({}).axes) == 1


@pytest.mark.slow
def test_the_quick_study(tmp_path, monkeypatch):
    monkeypatch.setenv("AISEC_CACHE", str(tmp_path / "cache"))
    (room,) = choose_rooms(["uadat"])
    tasks, _ = plan({room: STUDY}, tmp_path / "records", "quick", seeds=1)
    assert run(tasks) == []
    outcomes = outcomes_of(read_records(tmp_path / "records", room.name))
    for by_arm in outcomes.values():
        assert by_arm["standard"].metrics["aa"] < 0.15
        assert by_arm["trades"].metrics["aa"] > 0.35
        assert set(by_arm) == set(STUDY.runnable_arms("quick"))
    judged = {judgement.claim.text: judgement for judgement in judge(STUDY, outcomes)}
    assert judged["TRADES is far more robust than standard training"].effect > 0.25
    assert judged["UAD is more robust than TRADES"].n == 1
    assert judged["TRADES is more robust than AT"].n == 0  # AT is no arm of the scale

import numpy as np
import pytest
from aisec_common import Outcome
from aisec_common.result import outcomes_of, read_records
from aisec_common.rooms import choose_rooms
from aisec_common.runner import plan, run
from aisec_common.testing import MemoryLog
from aisec_common.verdict import judge
from small_language import small_aligned, with_few_rows

from procon.arms import ARMS, MAIN
from procon.hf_directions import refusal_directions
from procon.study import STUDY, Bench, TuningScale, cost_by_alpha, drift_by_layer, refusal_and_task, trial

SCALE = TuningScale(seeds=1, steps=2)


@pytest.fixture(scope="module")
def benches(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AISEC_CACHE", str(tmp_path_factory.mktemp("cache")))
        aligned = with_few_rows(small_aligned())
        probes = {"harmful": aligned.harmful, "harmless": aligned.harmless}
        directions = refusal_directions(aligned.model, aligned.tokenizer, **probes, batch_size=128)
        yield {"": Bench(aligned=aligned, directions=directions)}


def test_the_aligned_arm_has_not_moved(benches):
    log = MemoryLog()
    found = trial("aligned", benches, 0, SCALE, log)
    assert found["shift"] == 0
    assert [found[f"cos.{layer}"] for layer in range(3)] == pytest.approx([1, 1, 1], abs=1e-5)
    assert len(log.samples) == 4 * 32
    assert {"rows", "directions"} == set(log.hashes)
    odds = [v["refusal_log_odds"] for id, v in log.samples.items() if id.startswith("flagged")]
    assert found["refusal_log_odds"] == pytest.approx(np.mean(odds), abs=1e-4)


def test_a_trained_arm_has(benches):
    found, aligned = trial("sft", benches, 0, SCALE, MemoryLog()), trial("aligned", benches, 0, SCALE, MemoryLog())
    assert set(found) == set(aligned)
    assert found["shift"] > 0
    assert found["refusal_log_odds"] != aligned["refusal_log_odds"]
    assert found["cos_deep"] == pytest.approx((found["cos.1"] + found["cos.2"]) / 2)


def test_other_arms_wait_for_the_full_scale_and_the_wide_language_takes_the_claims_arms(benches):
    full = STUDY.scales["full"]
    assert set(STUDY.runnable_arms("standard")) == set(MAIN)
    assert set(STUDY.runnable_arms("full")) == set(ARMS)
    assert trial("kl", {"wide.": benches[""]}, 0, full, MemoryLog()) == {}
    found = trial("aligned", {"wide.": benches[""]}, 0, full, MemoryLog())
    assert all(name.startswith("wide.") for name in found)


def made_up(arms=tuple(MAIN), *, lost=5.0, seeds=8):
    """Plain fine-tuning loses `lost` log-odds, procon_wu keeps half of them."""
    rng = np.random.default_rng(0)
    kept = {"aligned": lost, "procon_wu": lost / 2}
    outcomes = {}
    for seed in range(seeds):
        outcomes[seed] = {}
        for arm in arms:
            metrics = {"refusal_log_odds": kept.get(arm, 0.0), "task_new": 0.9, "cos_deep": 0.5, "shift": 1.0}
            metrics |= {f"cos.{layer}": 0.5 for layer in range(4)}
            noisy = {name: value + 0.1 * rng.normal() for name, value in metrics.items()}
            outcomes[seed][arm] = Outcome(metrics=noisy)
    return outcomes


def test_the_premise_comes_first_and_is_judged():
    assert STUDY.claims[0].text.startswith("premise")
    verdicts = [judgement.verdict for judgement in judge(STUDY, made_up())]
    assert verdicts[:2] == ["holds", "holds"]
    assert verdicts[2:] != ["holds"] * 4
    assert judge(STUDY, made_up(lost=-5.0))[0].verdict == "fails"


def test_figures():
    outcomes = made_up(tuple(ARMS))
    assert len(drift_by_layer(outcomes).axes[0].get_legend().get_texts()) == len(ARMS)
    labels = {text.get_text() for text in refusal_and_task(outcomes).axes[0].get_yticklabels()}
    assert len(labels) == len(ARMS)
    (share,) = [label for label in labels if label.startswith("procon_wu (")]
    assert 45 <= int(share.split("(")[1].split("%")[0]) <= 55
    assert len(cost_by_alpha(outcomes).axes) == 3


def test_figures_show_what_was_measured():
    outcomes = made_up()
    assert len(drift_by_layer(outcomes).axes[0].get_legend().get_texts()) == len(MAIN)
    assert len(cost_by_alpha(outcomes).axes[0].lines[-1].get_xdata()) == 2
    for figure in STUDY.figures:
        figure({0: {}})


@pytest.mark.slow
def test_the_quick_study(tmp_path):
    (room,) = choose_rooms(["procon"])
    tasks, _ = plan({room: STUDY}, tmp_path, "quick", seeds=2)  # one a core
    assert run(tasks) == []
    outcomes = outcomes_of(read_records(tmp_path, room.name))
    assert set(outcomes[0]) == set(MAIN)
    assert [judgement.n for judgement in judge(STUDY, outcomes)] == [2] * len(STUDY.claims)
    for by_arm in outcomes.values():
        aligned = by_arm["aligned"].metrics
        assert aligned["refusal_rate"] == 1.0
        assert aligned["over_refusal"] == 0.0
        # the same seed, data, order and steps: the heavier the constraint, the less the projections move
        assert by_arm["procon_s"].metrics["shift"] < by_arm["sft"].metrics["shift"]
    assert len(refusal_and_task(outcomes).axes) == 2

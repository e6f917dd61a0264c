from dataclasses import replace

import numpy as np
import pytest
from aisec_common.result import outcomes_of, read_records
from aisec_common.rooms import choose_rooms
from aisec_common.runner import plan, run
from aisec_common.testing import MemoryLog
from aisec_common.verdict import judge

from impq.arms import ARMS, Bench
from impq.study import BLOCKS, STUDY, margin_growth, regret_by_arm, trial
from impq.table_games import planted_game


def benches(strength=1.0, seed=0):
    return {"planted": Bench(planted_game("positive", seed, strength=strength, players=8), seed, 50)}


def scores(arm, **changes):
    return trial(arm, benches(**changes), 0, STUDY.scales["quick"], MemoryLog())


def test_regrets_are_shares_of_the_random_plan_s():
    assert {key: scores("random")[key] for key in ("planted", "planted.shallow", "planted.deep")} == {
        "planted": pytest.approx(1),
        "planted.shallow": pytest.approx(1),
        "planted.deep": pytest.approx(1),
    }
    assert scores("optimum")["planted.calibration"] == 0
    assert scores("lim") == {}  # needs a model


def test_samples_hold_a_plan_and_its_regret_by_size():
    log = MemoryLog()
    found = trial("shapley", benches(), 0, STUDY.scales["quick"], log)
    assert [len(log.samples[f"planted.{k}"]["low"]) for k in range(1, 8)] == list(range(1, 8))
    total = sum(sample["regret"] for sample in log.samples.values())
    chance = sum(benches()["planted"].game.mean_regret(k) for k in range(1, 8))
    assert found["planted"] == pytest.approx(total / chance)
    assert {"python_documentation", "planted"} == set(log.hashes)


def test_text_is_the_mean_over_both_quantisers_and_plans_move_between_them():
    one, two = (benches(seed=seed)["planted"] for seed in (0, 1))
    found = trial("shapley", {"text_row": one, "text_tensor": two}, 0, STUDY.scales["standard"], MemoryLog())
    assert found["text.deep"] == pytest.approx((found["text_row.deep"] + found["text_tensor.deep"]) / 2)
    moved = [two.game.regret(ARMS["shapley"](one).plans(k)[0]) for k in range(1, 8)]
    assert found["text_row_on_text_tensor"] == pytest.approx(np.mean(moved))


def test_finer_plans_are_judged_against_the_best_plan_of_blocks():
    bench = benches()["planted"]
    best = [bench.game.held_out[bench.game.sizes == k].min() for k in range(1, 8)]
    game = replace(bench.game, finer={"linear": np.array([99.0, *(loss + 0.5 for loss in best)])})
    found = trial("linear", {"lookup": replace(bench, game=game)}, 0, STUDY.scales["full"], MemoryLog())
    assert found["lookup"] == pytest.approx(0.5)
    assert found["lookup.evaluations"] == 99
    assert "lookup.calibration" not in found


def test_no_interactions_no_improvement_by_precedence():
    pairs = [(scores("precedence", strength=0.0, seed=s), scores("shapley", strength=0.0, seed=s)) for s in range(4)]
    assert all(a["planted"] == pytest.approx(b["planted"], abs=1e-9) for a, b in pairs)


def test_the_growing_margin_is_the_lead_with_many_low_blocks_less_that_with_few():
    metrics = {"impq": {"text.deep": 1.0, "text.shallow": 0.5}}
    metrics |= {"lim": {"text.deep": 5.0, "text.shallow": 2.0}, "llm_mq": {"text.deep": 6.0, "text.shallow": 1.0}}
    assert margin_growth(metrics) == 4.5 - 1.0


@pytest.mark.slow
def test_the_quick_study(tmp_path):
    (room,) = choose_rooms(["impq"])
    tasks, _ = plan({room: STUDY}, tmp_path, "quick")
    assert run(tasks) == []
    records = read_records(tmp_path, room.name)
    assert {(seed, arm) for seed, arms in records.items() for arm in arms} == {
        (seed, arm) for seed in range(3) for arm in BLOCKS
    }
    outcomes = outcomes_of(records)
    assert "text" in outcomes[0]["lim"].metrics
    assert "planted_positive" not in outcomes[0]["lim"].metrics  # LIM needs a model
    assert [j.n for j in judge(STUDY, outcomes) if "look-up" not in j.claim.text] == [3] * (len(STUDY.claims) - 1)
    optimum = [by_arm["optimum"].metrics["text.calibration"] for by_arm in outcomes.values()]
    others = [
        outcome.metrics["text.calibration"]
        for by_arm in outcomes.values()
        for outcome in by_arm.values()
        if "text.calibration" in outcome.metrics
    ]
    assert max(optimum) == 0.0
    assert min(others) >= 0.0
    assert len(regret_by_arm(outcomes).axes) == 2

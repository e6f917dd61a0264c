import math

import numpy as np
import pytest
from aisec_common.result import outcomes_of, read_records
from aisec_common.rooms import choose_rooms
from aisec_common.runner import plan, run
from aisec_common.verdict import judge

from impq.study import ARMS, STUDY, Bench, margin_growth, regret_by_arm, trial
from impq.table_games import planted_game

NEEDS_A_MODEL = {"lim", "llm_mq", "zd+", "zd-", "activation", "weight_error", "isolated_long", "prune"}


class Log:
    def __init__(self):
        self.samples, self.hashes = {}, {}

    def sample(self, id, **values):
        self.samples[id] = values

    def progress(self, done, total):
        assert 0 < done <= total

    def data(self, name, content):
        self.hashes[name] = content


def benches(pattern="positive", strength=1.0, seed=0, walks=50):
    game = planted_game(pattern, seed, strength=strength, players=8)
    return {"planted": Bench(game, seed, walks)}


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_gives_plans_of_every_size(arm):
    log = Log()
    found = trial(arm, benches(), 0, STUDY.scales["quick"], log)
    if arm in NEEDS_A_MODEL:
        assert found == {}
        return
    assert found.keys() == {"planted", "planted.shallow", "planted.deep", "planted.calibration"}
    assert all(value >= -1e-12 for value in found.values())
    for k in range(1, 8):
        low = log.samples[f"planted.{k}"]["low"]
        assert len(set(low)) == (0 if arm == "random" else k)


def test_the_optimum_has_no_regret_and_chance_all_of_it():
    found = {arm: trial(arm, benches(), 0, STUDY.scales["quick"], Log())["planted"] for arm in ("optimum", "random")}
    assert found == {"optimum": 0.0, "random": pytest.approx(1.0)}


def test_an_additive_game_leaves_nothing_to_interactions():
    scale = STUDY.scales["quick"]
    for arm in (
        "impq",
        "alpha_0",
        "alpha_1",
        "shapley",
        "precedence",
        "pairwise_ls",
        "isolated",
        "greedy",
        "truncated",
    ):
        assert trial(arm, benches(strength=0.0), 0, scale, Log())["planted"] == pytest.approx(0, abs=1e-9), arm


def test_no_game_with_interactions_of_size_0_lets_precedence_improve_on_shapley():
    pairs = [
        tuple(
            trial(arm, benches(strength=0.0, seed=seed), seed, STUDY.scales["quick"], Log())["planted"]
            for arm in ("precedence", "shapley")
        )
        for seed in range(4)
    ]
    assert all(a == pytest.approx(b, abs=1e-9) for a, b in pairs)


def test_shuffled_values_are_no_better_than_chance():
    shuffled = [trial("shuffled", benches(seed=s), s, STUDY.scales["quick"], Log())["planted"] for s in range(8)]
    error = np.std(shuffled, ddof=1) / math.sqrt(len(shuffled))
    assert np.mean(shuffled) > 1 - 3 * error


def test_the_controls_keep_the_strength_of_the_pair_terms():
    bench = next(iter(benches().values()))
    for arm in ("covariance", "precedence"):
        from impq.interaction import quadratic

        right = quadratic(bench.full, arm)
        for wrong in bench.wrong_pairs(bench.full, arm):
            assert np.sort(wrong.pair, axis=None) == pytest.approx(np.sort(right.pair, axis=None))
            assert not np.allclose(wrong.pair, right.pair)


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
        (seed, arm) for seed in range(3) for arm in STUDY.arms
    }
    outcomes = outcomes_of(records)
    measured = {"text", "text_tensor", "planted_positive"} - set(outcomes[0]["lim"].metrics)
    assert measured == {"planted_positive"}  # LIM needs a model
    assert [j.n for j in judge(STUDY, outcomes) if "look-up" not in j.claim.text] == [3] * (len(STUDY.claims) - 1)
    optimum = [by_arm["optimum"].metrics["text.calibration"] for by_arm in outcomes.values()]
    others = [by_arm[arm].metrics["text.calibration"] for by_arm in outcomes.values() for arm in STUDY.arms]
    assert max(optimum) == 0.0
    assert min(others) >= 0.0
    assert len(regret_by_arm(outcomes).axes) == 2

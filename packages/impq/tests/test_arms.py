import math
from dataclasses import replace

import numpy as np
import pytest

from impq.arms import ARMS, Bench
from impq.interaction import quadratic
from impq.table_games import planted_game

NEED_A_MODEL = {
    "lim", "llm_mq", "zd+", "zd-", "activation", "weight_error", "isolated_long", "prune", "group", "linear"
}  # fmt: skip
MEASURED = (
    "impq",
    "alpha_0",
    "alpha_1",
    "shapley",
    "precedence",
    "pairwise_ls",
    "isolated",
    "greedy",
    "truncated",
    "aisec",
)


def bench(pattern="positive", strength=1.0, seed=0, walks=50, players=8):
    return Bench(planted_game(pattern, seed, strength=strength, players=players), seed, walks)


def regret(arm, on):
    """Mean regret over sizes as a share of the random plan's."""
    planned = ARMS[arm](on)
    sizes = range(1, on.players)
    own = sum(np.mean([on.game.regret(low) for low in planned.plans(k)]) for k in sizes)
    return own / sum(on.game.mean_regret(k) for k in sizes)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_plans_every_size_and_says_what_it_measured(arm):
    planned = ARMS[arm](bench())
    if arm in NEED_A_MODEL:
        assert planned is None
        return
    assert 0 <= planned.evaluations <= 2**8
    for k in range(1, 8):
        plans = planned.plans(k)
        assert plans == planned.plans(k)
        assert (plans == []) == (arm == "random")
        assert all(len(set(low)) == k and 0 <= min(low) <= max(low) < 8 for low in plans)


@pytest.mark.parametrize("arm", MEASURED)
def test_an_additive_game_leaves_nothing_to_interactions(arm):
    assert regret(arm, bench(strength=0.0)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("shift", [-50.0, 0.0, 50.0])
def test_a_shift_of_the_scores_changes_no_plan_and_no_number_of_low_players(shift):
    on = bench()
    scores = on.full.shapley
    for k in range(1, 8):
        assert on.scored(scores + shift, 0).plans(k) == [sorted(np.argsort(scores)[:k].tolist())]


def test_the_optimum_has_no_regret():
    assert regret("optimum", bench()) == 0


def test_precedence_finds_planted_pairs_and_shuffled_orders_lose_them():
    shares = {
        arm: np.mean([regret(arm, bench("chain", seed=seed, strength=2.0)) for seed in range(3)])
        for arm in ("precedence", "shapley", "shuffled_precedence")
    }
    assert shares["precedence"] < 0.05
    assert shares["shapley"] > 0.2
    assert shares["shuffled_precedence"] > shares["precedence"] + 0.1


def test_shuffled_values_are_no_better_than_chance():
    shares = [regret("shuffled", bench(seed=seed)) for seed in range(8)]
    assert np.mean(shares) > 1 - 3 * np.std(shares, ddof=1) / math.sqrt(len(shares))


def test_walks_at_the_other_end_see_other_coalitions():
    on = bench()
    near = on.truncated
    far = on.play(antithetic=True, depth=4, direction="promote")
    assert near.orders.shape == far.orders.shape
    assert far.header.v_start == pytest.approx(on.game.calibration[-1])
    assert near.header.v_start == pytest.approx(on.game.calibration[0])


def test_the_preset_is_truncated_for_few_low_players_and_full_for_many():
    on = bench()
    parts = {"shallow": ARMS["truncated"](on), "deep": ARMS["antithetic"](on)}
    for k in range(1, 8):
        assert ARMS["aisec"](on).plans(k) == parts["shallow" if k <= 4 else "deep"].plans(k)


def test_more_walks_measure_more():
    counts = [ARMS[arm](bench(players=10)).evaluations for arm in ("ten_walks", "impq", "hundred_walks")]
    assert counts == sorted(set(counts))


def test_finer_players_come_with_their_own_losses():
    on = bench()
    game = replace(on.game, finer={"linear": np.array([99.0, *range(7)])})
    planned = ARMS["linear"](replace(on, game=game))
    assert planned.evaluations == 99
    assert planned.held_out.tolist() == [*range(7)]


def test_the_pairs_of_the_control_keep_the_values_of_the_players():
    on = bench()
    for interaction in ("covariance", "precedence"):
        assert on.shuffled_pairs(interaction).evaluations == on.full.n_evaluations
    right = quadratic(on.full, "precedence")
    assert right.value(np.ones(on.players)) == pytest.approx(on.game.calibration[-1], rel=0.05)

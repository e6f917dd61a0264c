from itertools import pairwise

import numpy as np
import pytest

from impq import plan as plan_module
from impq.budget import Budget
from impq.game import Game, GameHeader
from impq.plan import plan_of, settled, solve
from impq.player import Player

N = 6
LINEAR = (0.5, 0.1, 0.3, 0.2, 0.9, 0.4)


def game(linear=LINEAR, pair=None, *, bits=(4, 2), walks=20, noise=0.0, depth=None, seed=0, **changes):
    """A game on the pairwise loss linear.q + q'pair q / 2, with noise per walk and step."""
    widths = len(bits)
    steps = len(linear)
    pair = np.zeros((steps, steps)) if pair is None else np.asarray(pair, dtype=float)
    players = tuple(
        Player(
            name=f"model.layers.{i}",
            block=i,
            modules=(f"model.layers.{i}.q_proj", f"model.layers.{i}.up_proj"),
            shapes=((8, 8), (8, 12)),
            nbytes=tuple(20 * width + 16 + 3 * (i % 2) * (width > 2) for width in bits),
        )
        for i in range(steps // (widths - 1))
    )
    header = GameHeader(
        model_name="planted",
        model_hash="m" * 64,
        calib_hash="c" * 64,
        backend="rtn",
        bits=bits,
        group_size=8,
        granularity="block",
        players=players,
        other_bytes=1000,
        depth=depth,
        n_tokens=1,
        seed=seed,
        v_high=1.0,
        v_low=1 + sum(linear),
        **changes,
    )
    orders = np.stack([header.walks.order(m) for m in range(walks)])
    rng = np.random.default_rng(seed)
    losses = np.empty(orders.shape)
    for m, order in enumerate(orders):
        q = np.full(steps, float(header.direction == "promote"))
        for k, step in enumerate(order):
            q[step] = 1 - q[step]
            losses[m, k] = 1 + np.dot(linear, q) + q @ pair @ q / 2 + noise * rng.normal() * (k < steps - 1)
    return Game(header=header, orders=orders, losses=losses, n_evaluations=0, n_memo_hits=0, n_block_forwards=0.0)


def test_additive_game_takes_the_cheapest_blocks_under_every_interaction():
    for interaction in ("covariance", "none", "precedence", "pairwise_ls"):
        plan = solve(game(), Budget(avg_bits=3.0), interaction=interaction)
        assert [name for name, bits in plan.bits.items() if bits == 2] == [f"model.layers.{i}" for i in (1, 2, 3)]
        assert plan.predicted_loss == pytest.approx(0.6, abs=1e-2)
        assert plan.status == "optimal"
        assert plan.coalition == 0b001110


def test_pairwise_game_is_solved_to_its_true_optimum():
    rng = np.random.default_rng(1)
    pair = np.triu(rng.exponential(0.5, (N, N)), 1)
    g = game(pair=pair + pair.T, walks=300)
    plan = solve(g, Budget(avg_bits=3.0), interaction="pairwise_ls")

    def loss(coalition):
        q = np.array([coalition >> k & 1 for k in range(N)])
        return q @ [0.5, 0.1, 0.3, 0.2, 0.9, 0.4] + q @ pair @ q

    best = min((c for c in range(2**N) if c.bit_count() >= 3), key=loss)
    assert plan.coalition == best
    assert plan.predicted_loss == pytest.approx(loss(best), abs=1e-2)


@pytest.mark.parametrize("interaction", ["covariance", "none", "precedence"])
def test_frontier_falls_with_the_budget(interaction):
    g = game(noise=0.02)
    budgets = [Budget(avg_bits=b) for b in np.linspace(2, 4, 13)]
    losses = [solve(g, budget, interaction=interaction).predicted_loss for budget in budgets]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(losses))
    assert losses[-1] == 0


def test_ends_are_uniform_without_the_solver(monkeypatch):
    monkeypatch.setattr(plan_module, "assign", None)  # calling it would fail
    g = game()
    low, high = solve(g, Budget(avg_bits=2.0)), solve(g, Budget(avg_bits=4.0))
    assert set(low.bits.values()) == {2}
    assert set(high.bits.values()) == {4}
    assert low.status == high.status == "uniform"
    assert high.predicted_loss == 0
    assert low.predicted_loss == pytest.approx(2.4)
    assert settled(g, [Budget(avg_bits=2.0), Budget(avg_bits=9.0)])
    least, most = (g.header.other_bytes + sum(p.nbytes[level] for p in g.header.players) for level in (1, 0))
    assert set(solve(g, Budget(bytes=least)).bits.values()) == {2}
    assert set(solve(g, Budget(bytes=most)).bits.values()) == {4}
    with pytest.raises(ValueError, match=f"bytes is {least - 1}; the smallest feasible value is {least}"):
        solve(g, Budget(bytes=least - 1))


def test_no_budget_is_exceeded_by_a_byte():
    g = game(bits=(8, 4, 2), linear=tuple(np.linspace(0.1, 1, 12)))
    least = g.header.other_bytes + sum(p.nbytes[-1] for p in g.header.players)
    for size in range(least, least + 800, 37):
        plan = solve(g, Budget(bytes=size), interaction="none")
        assert plan.bytes <= size
        assert plan.bytes == 1000 + sum(p.nbytes[level] for p, level in zip(plan.players, plan.levels, strict=True))
    effective = solve(g, Budget(avg_bits=5.0, effective=True), interaction="none")
    assert 8 * effective.quantised_bytes / sum(p.weights for p in effective.players) <= 5.0
    assert solve(g, Budget(avg_bits=5.0), interaction="none").avg_bits <= 5.0


def test_three_widths_take_steps_in_order():
    linear = (0.6, 0.01, 0.1, 0.2, 0.3, 0.25)  # the second step of player 0 is cheap but waits for the dear first one
    plan = solve(game(linear=linear, bits=(8, 4, 2)), Budget(avg_bits=4.4), interaction="none")
    assert plan.levels == (0, 2, 2)
    assert plan.coalition == 0b111100
    assert plan.bits == {"model.layers.0": 8, "model.layers.1": 2, "model.layers.2": 2}


def test_scores_replace_the_measured_losses():
    plan = solve(game(), Budget(avg_bits=3.0), scores=[1, 6, 2, 5, 3, 4])
    assert plan.coalition == 0b010101
    assert plan.predicted_loss is None
    assert plan.interaction is None
    with pytest.raises(ValueError, match="scores"):
        solve(game(), Budget(avg_bits=3.0), scores=[1, 2])


@pytest.mark.parametrize("shift", [-10.0, -3.5, 0.0])
def test_scores_below_zero_take_no_more_steps_than_asked_for(shift):
    scores = np.array([1.0, 6, 2, 5, 3, 4]) + shift
    plan = solve(game(), Budget(avg_bits=3.0), scores=scores)
    assert [i for i, level in enumerate(plan.levels) if level] == [0, 2, 4]
    same = solve(game(), Budget(avg_bits=3.0), scores=np.full(6, shift))
    assert sum(same.levels) == 3


def test_names_of_modules():
    plan = solve(game(), Budget(avg_bits=3.0))
    assert plan.module_bits["model.layers.1.up_proj"] == 2
    assert plan.module_bits["model.layers.0.q_proj"] == 4
    assert len(plan.module_bits) == 12


def test_covariance_of_truncated_walks_is_refused_and_precedence_is_not():
    g = game(depth=3, walks=24)
    with pytest.raises(ValueError, match="interaction"):
        solve(g, Budget(avg_bits=3.0))
    assert solve(g, Budget(avg_bits=3.0), interaction="precedence").coalition == 0b001110


def test_given_plan():
    header = game().header
    plan = plan_of(header, [True, False] * 3, Budget(avg_bits=3.0))
    assert plan.coalition == 0b010101
    assert plan.status == "given"
    assert plan.game_sha256 is None
    with pytest.raises(ValueError, match="low exceeds the budget"):
        plan_of(header, [True] + [False] * 5, Budget(avg_bits=3.0))
    with pytest.raises(ValueError, match="low has shape"):
        plan_of(header, [True], Budget(avg_bits=3.0))
    three = game(bits=(8, 4, 2)).header
    with pytest.raises(ValueError, match="without the earlier one"):
        plan_of(three, [False, True, True, True, True, True], Budget(avg_bits=8))


def test_plan_is_settled_when_the_noise_is_small_against_the_differences():
    budgets = [Budget(avg_bits=2.5), Budget(avg_bits=3.0)]
    assert settled(game(), budgets)
    assert settled(game(noise=1e-3, walks=50), budgets, interaction="none")
    assert not settled(game(noise=1.0), budgets, interaction="none")
    assert not settled(game(walks=9), budgets, interaction="none")
    assert settled(game(walks=10), budgets, interaction="none")
    assert not settled(game(walks=18, antithetic=True), budgets, interaction="none")
    assert settled(game(walks=20, antithetic=True), budgets, interaction="none")


def test_settled_means_that_no_value_within_the_intervals_changes_the_plan():
    g = game(noise=0.05, walks=40, seed=3)
    budget = Budget(avg_bits=3.0)
    plan, rng, stable = solve(g, budget, interaction="none"), np.random.default_rng(0), True
    for _ in range(100):
        corner = g.shapley + (g.ci()[:, 1] - g.shapley) * rng.choice([-1, 1], N)
        stable &= solve(g, budget, scores=corner).coalition == plan.coalition
    assert settled(g, [budget], interaction="none") == stable


@pytest.mark.parametrize("interaction", ["none", "precedence", "covariance"])
def test_nothing_is_settled_before_every_step_was_taken(interaction):
    g = game(depth=3, walks=2) if interaction != "covariance" else game(walks=1)
    assert not np.isfinite(g.stderr).all()
    assert not settled(g, [Budget(avg_bits=3.0)], interaction=interaction)


def test_a_few_walks_have_wide_intervals(monkeypatch):
    """With ten walks Student's t is 2.26, and a plan that holds for 1.96 standard errors only is not settled."""
    monkeypatch.setattr(Game, "stderr", np.full(N, 0.1 / 2 / 2.1))  # blocks 2 and 5, the boundary, lie 0.1 apart
    g, budget = game(walks=10), Budget(avg_bits=3.0)
    monkeypatch.setattr(Game, "ci", lambda self: self.shapley[:, None] + 1.96 * self.stderr[:, None] * [-1, 1])
    assert settled(g, [budget], interaction="none")
    monkeypatch.setattr(Game, "ci", lambda self: self.shapley[:, None] + 2.26 * self.stderr[:, None] * [-1, 1])
    assert not settled(g, [budget], interaction="none")


class TestTruncatedWalks:
    """Truncated walks measure no plan beyond their last step."""

    @pytest.mark.parametrize("interaction", ["none", "precedence", "pairwise_ls"])
    def test_a_budget_beyond_the_walks_is_refused(self, interaction):
        g = game(depth=2, walks=30)
        with pytest.raises(ValueError, match=r"budget may need 3 steps, .* take 2: play walks of depth 3,") as caught:
            solve(g, Budget(avg_bits=3.0), interaction=interaction)
        assert "\n" not in str(caught.value)
        with pytest.raises(ValueError, match="budget may need 3 steps"):
            settled(g, [Budget(avg_bits=3.5), Budget(avg_bits=3.0)], interaction=interaction)
        with pytest.raises(ValueError, match="budget may need 6 steps"):
            solve(g, Budget(avg_bits=2.0), interaction=interaction)
        assert sum(solve(g, Budget(avg_bits=3.4), interaction=interaction).levels) == 2

    def test_scores_are_not_bound_to_the_walks(self):
        plan = solve(game(depth=2, walks=30), Budget(avg_bits=3.0), scores=LINEAR)
        assert plan.coalition == 0b001110

    def test_walks_on_the_way_up_measure_tight_budgets(self):
        g = game(depth=2, walks=30, direction="promote")
        assert g.shapley == pytest.approx(LINEAR)
        assert solve(g, Budget(avg_bits=2.7), interaction="none").coalition == 0b101110  # two blocks go up
        with pytest.raises(ValueError, match=r"budget may need 3 steps, .* or choose a tighter budget"):
            solve(g, Budget(avg_bits=3.0), interaction="none")

    def test_no_steps_are_within_any_walk(self):
        plan = solve(game(depth=1, walks=30), Budget(avg_bits=4.5), interaction="none")
        assert (plan.coalition, plan.status, plan.predicted_loss) == (0, "uniform", 0)

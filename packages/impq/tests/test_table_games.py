from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise_games import exact_shapley, pairwise_table

from impq.estimate import model_game
from impq.hf_embedded import lookup_task
from impq.play import play
from impq.scores import SCORES
from impq.table_games import PATTERNS, TableGame, kept_game, measured_game, planted_game
from impq.value import TableValue, exhaustive


def parts_of(table, n):
    """a and I read off the table itself: single and double differences from the empty coalition."""
    a = np.array([table[1 << i] for i in range(n)])
    pairs = np.zeros((n, n))
    for i, j in combinations(range(n), 2):
        pairs[i, j] = pairs[j, i] = table[1 << i | 1 << j] - a[i] - a[j]
    return a, pairs


class TestPlanted:
    @pytest.mark.parametrize("pattern", PATTERNS)
    @given(seed=st.integers(0, 99), strength=st.sampled_from([0.3, 1.0, 3.0]), n=st.integers(2, 8))
    @settings(max_examples=20)
    def test_closed_form(self, pattern, seed, strength, n):
        game = planted_game(pattern, seed, strength=strength, players=n)
        table = game.calibration
        a, pairs = parts_of(table, n)
        assert table == pytest.approx(pairwise_table(a, pairs), abs=1e-9)
        assert ((a >= 0.5) & (a <= 1.5)).all()
        assert np.abs(pairs).sum() / n / 2 == pytest.approx(strength * a.mean())
        assert exact_shapley(table) == pytest.approx(a + pairs.sum(axis=1) / 2, abs=1e-9)
        near = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) == 1
        assert (pairs[near] != 0).all()
        assert np.abs(pairs[~near]).max(initial=0) < 1e-12 or pattern != "chain"
        assert pairs.min() > -1e-12 or pattern == "signed"

    def test_signs_and_seeds(self):
        _, pairs = parts_of(planted_game("signed", 0).calibration, 12)
        assert 0.2 < (pairs[np.triu_indices(12, 1)] < 0).mean() < 0.8
        assert not np.array_equal(planted_game("chain", 0).calibration, planted_game("chain", 1).calibration)
        assert np.array_equal(planted_game("chain", 1).calibration, planted_game("chain", 1).calibration)

    def test_additive(self):
        game = planted_game("positive", 0, strength=0.0, players=6)
        a, pairs = parts_of(game.calibration, 6)
        assert pairs == pytest.approx(0, abs=1e-12)
        for size in range(7):
            assert game.best(size) == sorted(np.argsort(a)[:size].tolist())

    def test_one_antithetic_pair_finds_the_values(self):
        game = planted_game("signed", 5, players=9)
        found = play(TableValue(game.calibration), replace(game.header, antithetic=True), 2)
        assert (found.header.v_high, found.header.v_low) == (game.header.v_high, game.header.v_low)
        assert found.shapley == pytest.approx(exact_shapley(game.calibration), abs=1e-9)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"pattern": "ring"}, "pattern must be one of positive, chain, signed, got 'ring'"),
            ({"players": 1}, "players must lie in 2..20"),
            ({"players": 21}, "players must lie in 2..20"),
        ],
    )
    def test_errors(self, arguments, words):
        with pytest.raises(ValueError, match=words):
            planted_game(**({"pattern": "chain", "seed": 0} | arguments))


class TestRegret:
    @pytest.fixture(scope="class")
    @staticmethod
    def game():
        rng = np.random.default_rng(0)
        header = planted_game("chain", 0, players=6).header
        return TableGame(header=header, calibration=rng.random(64), held_out=rng.random(64))

    @pytest.mark.parametrize("held_out", [True, False])
    @pytest.mark.parametrize("size", range(7))
    def test_identities(self, game, held_out, size):
        table = game.held_out if held_out else game.calibration
        plans = list(combinations(range(6), size))
        values = [table[sum(2**player for player in plan)] for plan in plans]
        regrets = [game.regret(plan, held_out=held_out) for plan in plans]
        assert regrets == pytest.approx(np.array(values) - min(values))
        assert min(regrets) == 0
        assert game.mean_regret(size, held_out=held_out) == pytest.approx(np.mean(regrets))

    @pytest.mark.parametrize("size", range(7))
    def test_best(self, game, size):
        best = game.best(size)
        assert len(best) == size
        assert game.regret(best, held_out=False) == 0
        assert game.regret(best) >= 0

    def test_sizes(self, game):
        assert game.sizes.tolist() == [bin(coalition).count("1") for coalition in range(64)]


class TestMeasured:
    @pytest.fixture(scope="class")
    @staticmethod
    def task(tmp_path_factory):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AISEC_CACHE", str(tmp_path_factory.mktemp("cache")))
            patch.setattr("impq.hf_embedded.LAYERS", 5)  # 32 coalitions instead of 256
            yield lookup_task(0, steps=2, answers=20)

    @pytest.fixture(scope="class")
    @staticmethod
    def game(task):
        return measured_game(task, group_size="tensor")

    def test_tables_are_the_losses_of_the_model(self, task, game):
        plain, pruned = (
            model_game(task.model, task.calibration, group_size="tensor", payoff=payoff)
            for payoff in ("quantize", "prune")
        )
        judged = model_game(task.model, task.held_out, group_size="tensor")
        some = [0, 1, 0b10000, 0b01010, 31]
        assert game.calibration[some] == pytest.approx(plain.value(some), abs=1e-6)
        assert game.held_out[some] == pytest.approx(judged.value(some), abs=1e-6)
        assert game.pruned[some] == pytest.approx(pruned.value(some), abs=1e-6)
        assert game.header.config_hash == plain.header.config_hash
        assert (game.header.v_high, game.header.v_low) == (game.calibration[0], game.calibration[31])
        assert game.header.model_name == "lookup"

    def test_scores(self, task, game):
        assert set(game.scores) == {*SCORES, "isolated_long"}
        assert all(score.shape == (5,) and np.isfinite(score).all() for score in game.scores.values())
        long = model_game(task.model, task.calibration_long, group_size="tensor").value([0, 1, 2])
        assert game.scores["isolated_long"][:2] == pytest.approx(np.subtract(long[1:], long[0]), abs=1e-6)

    def test_walks_on_the_table_are_walks_on_the_model(self, task, game):
        model = model_game(task.model, task.calibration, group_size="tensor")
        table, measured = (play(value, game.header, 2) for value in (TableValue(game.calibration), model.value))
        assert table.losses == pytest.approx(measured.losses, abs=1e-6)
        assert table.n_block_forwards == pytest.approx(model.value.n_block_forwards)

    def test_finer_players_are_planned_and_judged_at_the_same_bits(self, task):
        game = measured_game(task, group_size="tensor", granularities=("group",), walks=4)
        evaluations, *losses = game.finer["group"]
        assert evaluations <= 4 * 9 + 2
        assert len(losses) == 4
        fine = model_game(task.model, task.held_out, group_size="tensor", granularity="group")
        assert min(losses) >= exhaustive(fine.value, 10).min() - 1e-6

    def test_kept(self, game):
        recipe = {"seed": 1}
        kept_game(recipe, lambda: game)
        again = kept_game(recipe, lambda: pytest.fail("measured again"))
        assert np.array_equal(again.calibration, game.calibration)
        assert np.array_equal(again.held_out, game.held_out)
        assert np.array_equal(again.pruned, game.pruned)
        assert again.scores.keys() == game.scores.keys()
        assert again.header == game.header
        other = replace(game, pruned=None, finer={"linear": np.arange(5.0)})
        kept = kept_game({"seed": 2}, lambda: other)
        assert kept.pruned is None
        assert kept.finer["linear"].tolist() == [0, 1, 2, 3, 4]
        assert kept.scores.keys() == game.scores.keys()

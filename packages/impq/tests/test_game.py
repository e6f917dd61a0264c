import json
from dataclasses import replace

import numpy as np
import pytest
from pairwise_games import header, pairwise_table, played, random_pairs

from impq import spqe
from impq.game import Game
from impq.value import TableValue

RNG = np.random.default_rng(1)
TABLE = pairwise_table(RNG.random(5), random_pairs(RNG, 5)) + 1.0


@pytest.mark.parametrize("direction", ["demote", "promote"])
def test_what_follows_from_the_losses_is_what_spqe_says(direction):
    game = played(TableValue(TABLE), header(5, antithetic=True, direction=direction), 10)
    assert np.array_equal(game.shapley, spqe.shapley(game.marginals))
    assert np.array_equal(game.stderr, spqe.stderr(game.marginals, antithetic=True))
    assert np.array_equal(game.ci(0.9), spqe.interval(game.marginals, True, 0.9))
    assert np.array_equal(game.covariance, spqe.covariance(game.marginals))
    assert game.shapley.sum() == pytest.approx(TABLE[-1] - TABLE[0])  # positive: demotion hurts, in both directions


def test_up_and_down_agree_on_the_same_coalitions():
    up = played(TableValue(TABLE), header(5, direction="promote"), 4)
    down = played(TableValue(TABLE), header(5), 4, orders=up.orders[:, ::-1])
    assert up.marginals == pytest.approx(down.marginals)


@pytest.mark.parametrize(("depth", "walks"), [(None, 1), (None, 8), (2, 10)])
def test_save_and_load(tmp_path, depth, walks):
    game = played(TableValue(TABLE), header(5, depth=depth), walks)
    game.save(tmp_path / "new")
    again = Game.load(tmp_path / "new")
    assert (again.header, again.sha256) == (game.header, game.sha256)
    assert (again.n_evaluations, again.n_memo_hits) == (game.n_evaluations, game.n_memo_hits)
    for name in ("orders", "losses", "shapley", "stderr"):
        assert np.array_equal(getattr(again, name), getattr(game, name))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["game.json", "game.safetensors"]
    before = [path.read_bytes() for path in sorted((tmp_path / "new").iterdir())]
    again.save(tmp_path / "new")
    assert [path.read_bytes() for path in sorted((tmp_path / "new").iterdir())] == before


def test_load_names_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"game\.json: cannot be read"):
        Game.load(tmp_path)
    game = played(TableValue(TABLE), header(5), 3)
    game.save(tmp_path)
    tensors = (tmp_path / "game.safetensors").read_bytes()
    played(TableValue(TABLE), header(5), 4).save(tmp_path)
    (tmp_path / "game.safetensors").write_bytes(tensors)
    with pytest.raises(ValueError, match=r"game\.safetensors: is not a saved game .*does not belong"):
        Game.load(tmp_path)
    (tmp_path / "game.safetensors").write_bytes(tensors[:40])
    with pytest.raises(ValueError, match=r"game\.safetensors: is not a saved game"):
        Game.load(tmp_path)
    for content in ("[]", "{", json.dumps({"schema": "impq-game/2"})):
        (tmp_path / "game.json").write_text(content)
        with pytest.raises(ValueError, match=r"game\.json: is not a saved game") as caught:
            Game.load(tmp_path)
        assert "\n" not in str(caught.value)


def test_head_is_the_game_played_shorter():
    game, short = (played(TableValue(TABLE), header(5), walks) for walks in (7, 3))
    assert np.array_equal(game.head(3).losses, short.losses)
    assert np.array_equal(game.head(3).shapley, short.shapley)
    with pytest.raises(ValueError, match=r"1\.\.7"):
        game.head(8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"orders": np.zeros((3, 4), dtype=int)}, "orders must have shape"),
        ({"orders": np.zeros((0, 5), dtype=int), "losses": np.zeros((0, 5))}, "orders must have shape"),
        ({"orders": np.zeros((3, 5), dtype=int)}, "different steps"),
        ({"orders": np.tile(np.arange(1, 6), (3, 1))}, "different steps"),
        ({"losses": np.zeros((3, 4))}, "losses"),
        ({"losses": np.full((3, 5), np.nan)}, "finite"),
        ({"header": header(5, v_high=None)}, "measured first"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(played(TableValue(TABLE), header(5), 3), **change)

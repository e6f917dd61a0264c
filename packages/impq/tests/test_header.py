import json
from dataclasses import replace

import pytest
from pairwise_games import header

from impq.header import GameHeader

HEADER = header(3, v_high=3.25, v_low=None, depth=2)


def test_json_gives_back_the_header():
    assert GameHeader.from_json(json.loads(json.dumps(HEADER.to_json()))) == HEADER


def test_the_hash_is_of_what_decides_losses_and_walks():
    for same in ({"model_name": "n"}, {"v_high": 1.0}, {"v_low": 2.0}):
        assert replace(HEADER, **same).config_hash == HEADER.config_hash
    changes = {
        "model_hash": "cc",
        "calib_hash": "cc",
        "backend": "hqq",
        "bits": (8, 2),
        "group_size": "row",
        "granularity": "linear",
        "payoff": "prune",
        "players": tuple(reversed(HEADER.players)),
        "depth": 1,
        "antithetic": True,
        "seed": 1,
        "direction": "promote",
        "loss_unit": "bits/token",
        "n_tokens": 1,
    }
    hashes = {replace(HEADER, **{name: value}).config_hash for name, value in changes.items()}
    assert len(hashes | {HEADER.config_hash}) == len(changes) + 1


def test_all_steps_deep_is_a_full_walk():
    assert replace(HEADER, depth=3).config_hash == replace(HEADER, depth=None).config_hash
    assert replace(HEADER, depth=3).difference(replace(HEADER, depth=None, seed=1)) == "seed 0, this run has 1"


def test_the_difference_names_the_field():
    assert HEADER.difference(replace(HEADER, model_name="n", v_high=9.0)) is None
    assert HEADER.difference(replace(HEADER, group_size=32)) == "group_size 64, this run has 32"
    assert HEADER.difference(replace(HEADER, players=HEADER.players[::-1])) == "other players than this run"


def test_steps_are_named_by_player_and_width():
    assert header(2, (4, 3, 2)).steps == ("b0 to 3 bits", "b0 to 2 bits", "b1 to 3 bits", "b1 to 2 bits")


def test_the_start_depends_on_the_direction():
    assert header(2, v_high=1.0, v_low=2.0).v_start == 1.0
    assert header(2, v_high=1.0, v_low=2.0, direction="promote").v_start == 2.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": (2, 4)}, "bits must fall"),
        ({"bits": (4,)}, "bits must fall"),
        ({"bits": (4, 3, 2)}, "2 sizes for 3 widths"),
        ({"payoff": "drop"}, "payoff"),
        ({"depth": 9}, "depth"),
        ({"players": (HEADER.players[0],) * 2}, "different names"),
        ({"players": ()}, "at least 1 player"),
    ],
)
def test_impossible_headers_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(HEADER, **change)


def test_edited_json_is_refused():
    data = HEADER.to_json()
    for change, words in (
        ({"schema": 2}, "schema"),
        ({"seed": 5}, "config_hash"),
        ({"players": None}, "cannot be read"),
    ):
        with pytest.raises(ValueError, match=words):
            GameHeader.from_json({**data, **change})
    with pytest.raises(ValueError, match="cannot be read"):
        GameHeader.from_json({key: value for key, value in data.items() if key != "backend"})

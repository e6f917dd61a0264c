import json

import pytest

from impq.player import Player

PLAYER = Player(name="h.0", block=0, modules=("h.0.up", "h.0.down"), shapes=((8, 4), (4, 8)), nbytes=(32, 16))


def test_weights_count_every_module():
    assert PLAYER.weights == 64


def test_json_gives_back_the_player():
    assert Player.from_json(json.loads(json.dumps(PLAYER.to_json()))) == PLAYER


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modules": ()}, "at least one"),
        ({"shapes": ((8, 4),)}, "one shape each"),
        ({"shapes": ((8, 4), (0, 8))}, "positive"),
        ({"block": -1}, "at least 0"),
        ({"nbytes": (-1, 1)}, "negative"),
    ],
)
def test_impossible_players_are_refused(change, words):
    values = {name: getattr(PLAYER, name) for name in ("name", "block", "modules", "shapes", "nbytes")}
    with pytest.raises(ValueError, match=words):
        Player(**(values | change))


def test_incomplete_json_is_one_line():
    with pytest.raises(ValueError, match="cannot be read") as caught:
        Player.from_json({"name": "h.0"})
    assert "\n" not in str(caught.value)

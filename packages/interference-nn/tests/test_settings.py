import pytest

from interference_nn.settings import Settings


def test_the_blend_at_inference():
    assert Settings(alpha=0.2).blend == 0.2
    assert Settings(alpha="random").blend == 0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alpha": 1.1}, "alpha"),
        ({"alpha": "half"}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"draws": 0}, "draws"),
        ({"mode": "secret"}, "mode"),
        ({"head": "three"}, "head"),
        ({"interference": "add"}, "interference"),
        ({"weight": -1.0}, "weight"),
        ({"weight": float("inf")}, "weight"),
    ],
)
def test_wrong_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Settings(**changes)

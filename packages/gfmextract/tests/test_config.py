import pytest

from gfmextract.config import ExtractionConfig


def test_few_queries_get_more_epochs():
    config = ExtractionConfig(epochs=30, batch_size=32, min_steps=200)
    assert (config.batches(240), config.rounds(240), config.steps(240)) == (8, 30, 240)
    assert (config.batches(12), config.rounds(12), config.steps(12)) == (1, 200, 200)
    assert config.steps(33) == 2 * 100


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"backbone": "rgcn"}, "backbone must be one of gps, sage, gcn, gat, gin, mlp, got 'rgcn'"),
        ({"loss": "l1"}, "loss must be one of mse, cosine, huber"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"min_steps": 0}, "min_steps must be at least 1"),
        ({"hidden": 20}, "hidden must be a multiple of 8"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"patience": -1}, "patience must be 0"),
        ({"learning_rate": 0.0}, "learning_rate must lie"),
    ],
)
def test_wrong_settings_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        ExtractionConfig(**changed)

import json
from dataclasses import asdict

import pytest
import torch

from procon.config import ProConConfig


def test_it_has_a_hash_and_survives_json():
    config = ProConConfig(alpha=1, schedule="warmup", layers=(-1, 0))
    assert ProConConfig(**json.loads(json.dumps(asdict(config)))) == config
    assert len({config, ProConConfig(alpha=1.0, schedule="warmup", layers=(-1, 0))}) == 1


@pytest.mark.parametrize(
    "name", ["alpha", "schedule", "warmup_epochs", "norm", "normalize", "layers", "reference", "cache_dtype", "tokens"]
)
@pytest.mark.parametrize("value", [torch.ones(1), lambda progress: 0.1, [{"text": "a"}], None], ids=str)
def test_tensors_callables_and_data_are_refused_by_name(name, value):
    with pytest.raises(TypeError, match=f"^{name} must be") as raised:
        ProConConfig(**{name: value})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"schedule": "linear"}, "schedule must be one of constant, warmup"),
        ({"reference": "memory"}, "reference"),
        ({"layers": ()}, "layers is empty"),
        ({"schedule": "warmup", "warmup_epochs": 0}, "warmup_epochs"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ProConConfig(**settings)

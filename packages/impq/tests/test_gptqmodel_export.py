import re
from dataclasses import replace
from importlib.util import find_spec

import pytest

from impq.bit_plan import BitPlan
from impq.budget import Budget
from impq.gptqmodel_export import gptqmodel_config, quantize_config
from impq.player import Player


def plan(group_size=64):
    players = tuple(
        Player(
            name=f"model.layers.{i}",
            block=i,
            modules=(f"model.layers.{i}.q_proj",),
            shapes=((64, 64),),
            nbytes=(2048, 1024),
        )
        for i in (0, 1, 11)
    )
    return BitPlan(
        model_name="m",
        model_hash="0",
        backend="gptq",
        group_size=group_size,
        granularity="block",
        widths=(4, 2),
        players=players,
        levels=(0, 1, 0),
        other_bytes=0,
        budget=Budget(avg_bits=4),
    )


def test_rules_name_the_low_modules_and_no_other():
    config = gptqmodel_config(plan())
    assert config["bits"] == 4
    assert config["group_size"] == 64
    (rule,) = config["dynamic"]
    assert config["dynamic"][rule] == {"bits": 2}
    names = ["model.layers.0.q_proj", "model.layers.1.q_proj", "model.layers.11.q_proj", "model.layers.1.q_proj2"]
    assert [name for name in names if re.match(rule, name)] == ["model.layers.1.q_proj"]


def test_groups():
    assert gptqmodel_config(plan("row"))["group_size"] == -1
    with pytest.raises(ValueError, match="group_size"):
        gptqmodel_config(plan("tensor"))


@pytest.mark.skipif(find_spec("gptqmodel") is not None, reason="gptqmodel is installed")
def test_missing_library_says_how_to_get_it():
    with pytest.raises(ImportError, match="pip install gptqmodel"):
        quantize_config(plan())


@pytest.mark.gpu
def test_the_library_takes_the_config():
    pytest.importorskip("gptqmodel")
    config = quantize_config(replace(plan(), group_size=32))
    assert config.bits == 4
    assert config.dynamic_get("model.layers.1.q_proj", "bits") == 2

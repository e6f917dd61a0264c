from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from procon.cli_config import ALPHA, PROCON, SAFE, WARMED, TrainConfig, Variant
from procon.config import ProConConfig

OTHER = {  # than the default
    "alpha": 0.7,
    "warmup_epochs": 3.0,
    "norm": "squared",
    "reduction": "paper_sum",
    "normalize": True,
    "layers": (-1,),
    "reference": "model",
    "cache_dtype": "float16",
    "tokens": "both",
}


def config(variant, **settings):
    given = {"probe": (Path("a.txt"), Path("b.txt")), "out": Path("out"), "model": "m", "data": Path("d.jsonl")}
    safe = {"safety_data": Path("s.jsonl")} if variant in SAFE else {}
    return TrainConfig(variant=variant, **{**given, **safe, **settings})


def test_every_setting_of_the_term_is_an_option_with_the_same_default():
    offered = {field.name: field.default for field in fields(TrainConfig)}
    assert set(OTHER) == {field.name for field in fields(ProConConfig)} - {"schedule"}
    for field in fields(ProConConfig):
        if field.name not in ("schedule", "alpha", "warmup_epochs", "reference"):  # by variant; the fastest
            assert offered[field.name] == field.default, field.name


@pytest.mark.parametrize("variant", get_args(Variant))
@pytest.mark.parametrize("name", OTHER)
def test_a_setting_acts_or_is_refused(variant, name):
    acts = variant in (WARMED if name == "warmup_epochs" else PROCON)
    if acts:
        assert getattr(config(variant, **{name: OTHER[name]}).procon(), name) == OTHER[name]
    elif (variant, name) == ("kl", "alpha"):
        assert config(variant, alpha=0.7).alpha == 0.7
    else:
        with pytest.raises(ValueError, match=f"^{name} has no effect with --variant {variant}; leave it out") as raised:
            config(variant, **{name: OTHER[name]})
        assert "\n" not in str(raised.value)


def test_a_dtype_without_a_cache_is_refused():
    with pytest.raises(ValueError, match="cache_dtype has no effect with --reference model"):
        config("s", reference="model", cache_dtype="float16")


def test_what_is_left_out_takes_the_paper_s_values():
    assert config("s").procon() == ProConConfig(alpha=0.1, reference="cache")
    for variant, epochs in (("wu", 4.0), ("random", 4.0), ("wu_safe", 2.0)):
        warmed = ProConConfig(alpha=1.0, schedule="warmup", warmup_epochs=epochs, reference="cache")
        assert config(variant).procon() == warmed
    assert config("kl").alpha == ALPHA["kl"]
    assert config("sft").alpha is None


def test_values_out_of_range_are_refused_before_anything_is_loaded():
    for settings, message in (({"alpha": -1.0}, "alpha"), ({"warmup_epochs": 0.0}, "warmup_epochs must be positive")):
        with pytest.raises(ValueError, match=message):
            config("wu", **settings)

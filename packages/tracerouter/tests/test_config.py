from pathlib import Path
from typing import get_args

import pytest

from tracerouter.config import CompareConfig, ControlName, EvaluateConfig, ModelConfig, PlaceName, ShowConfig, SiteName
from tracerouter.controls import CONTROLS
from tracerouter.hf_comparison import PLACES
from tracerouter.sites import SITES


def test_names_are_those_of_the_library():
    assert set(get_args(SiteName)) == set(SITES)
    assert set(get_args(ControlName)) == {*CONTROLS, "direction"}
    assert get_args(PlaceName) == CompareConfig(out=Path("o")).places == tuple(place.name for place in PLACES)


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        ModelConfig(model="m", batch_size=0)
    with pytest.raises(ValueError, match="places must name at least one"):
        CompareConfig(out=Path("o"), places=())
    files = {"trace": Path("t"), "harmful": Path("h"), "benign": Path("b")}
    with pytest.raises(ValueError, match="give the file with --pairs"):
        EvaluateConfig(model="m", **files, controls=("direction",))
    assert EvaluateConfig(model="m", **files, controls=("direction",), pairs=Path("p")).pairs == Path("p")
    assert ShowConfig(trace=Path("t")).trace == Path("t")

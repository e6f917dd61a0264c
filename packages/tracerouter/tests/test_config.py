from pathlib import Path
from typing import get_args

import pytest

from tracerouter.config import ControlName, ModelConfig, ShowConfig, SiteName
from tracerouter.controls import CONTROLS
from tracerouter.sites import SITES


def test_names_are_those_of_the_library():
    assert set(get_args(SiteName)) == set(SITES)
    assert set(get_args(ControlName)) == set(CONTROLS)


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        ModelConfig(model="m", batch_size=0)
    assert ShowConfig(trace=Path("t")).trace == Path("t")

from pathlib import Path

import pytest

from icfnet.jobs import EvaluateJob, TrainJob

FILES = {"csv": Path("table.csv"), "signatures": Path("signatures.csv")}


@pytest.mark.parametrize(
    ("job", "settings", "words"),
    [
        (TrainJob, {"out": Path("o"), "splits": Path("s")}, "belong together"),
        (TrainJob, {"out": Path("o"), "modalities": ("nosuch",)}, "--modalities"),
        (EvaluateJob, {"model": Path("m")}, "--splits and --fold are missing"),
        (EvaluateJob, {"model": Path("m"), "splits": Path("s"), "fold": 0, "against": ("nosuch",)}, "--against"),
    ],
)
def test_misuse_is_told_before_any_work(job, settings, words):
    with pytest.raises(ValueError, match=words):
        job(**FILES, **settings)


def test_training_on_everyone_needs_no_split():
    assert TrainJob(**FILES, out=Path("o")).fold is None

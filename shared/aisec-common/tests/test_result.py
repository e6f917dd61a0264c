import math

import numpy as np
import pytest
from aisec_common.result import (
    Record,
    finite,
    outcomes_of,
    read_record,
    read_records,
    record_path,
    samples_text,
    text_hash,
    write_record,
)

SAMPLES = {"q1": {"right": True, "score": 0.5}, "q2": {"right": False, "score": float("nan")}}


def record(**changes):
    known = {
        "room": "r", "arm": "a", "seed": 0, "scale": "quick", "config": {"steps": 4}, "code": "c", "data": {},
        "metrics": {"x": 1.5, "undefined": float("nan")}, "versions": {"python": "3"}, "seconds": 1.0,
        "peak_memory_mib": 10.0, "device": "cpu", "command": "aisec", "git": None, "finished": "now",
        "samples_sha256": text_hash(samples_text(SAMPLES)),
    }  # fmt: skip
    return Record(**{**known, **changes})


def test_a_record_comes_back_as_written(tmp_path):
    write_record(tmp_path, record(), SAMPLES)
    back, outcome = read_record(record_path(tmp_path, "r", "a", 0))
    assert back.metrics["x"] == 1.5
    assert math.isnan(back.metrics["undefined"])
    assert back.differing({"config": {"steps": 4}, "code": "c"}) == []
    assert back.differing({"config": {"steps": 5}, "code": "d"}) == ["config", "code"]
    assert outcome.samples == {"q1": {"right": True, "score": 0.5}, "q2": {"right": False, "score": None}}
    assert outcomes_of(read_records(tmp_path, "r")) == {0: {"a": outcome}}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', '{"schema": 1, "metrics": 3}'])
def test_what_is_no_record_is_one_line(tmp_path, text):
    write_record(tmp_path, record(), SAMPLES)
    path = record_path(tmp_path, "r", "a", 0)
    path.write_text(text)
    with pytest.raises(ValueError, match=r"seed-000\.json: not a record of aisec") as caught:
        read_record(path)
    assert "\n" not in str(caught.value)


def test_scales_are_not_mixed(tmp_path):
    write_record(tmp_path, record(), SAMPLES)
    write_record(tmp_path, record(seed=1, scale="full"), SAMPLES)
    with pytest.raises(ValueError, match="mixes records of more than one scale"):
        read_records(tmp_path, "r")


def test_json_has_no_nan_and_no_numpy():
    value = finite({"a": [np.float64(1), math.inf, (np.int64(2),)], "b": np.array([1.0, math.nan]), 3: "x"})
    assert value == {"a": [1.0, None, [2]], "b": [1.0, None], "3": "x"}

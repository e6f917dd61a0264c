import json

import pytest
import torch

from procon.direction import RefusalDirections
from procon.drift import DriftReport, signed_cosines


def directions(vectors, **changes):
    layers = tuple(range(len(vectors)))
    unit = torch.nn.functional.normalize(torch.tensor(vectors), dim=-1)
    return RefusalDirections(**{"vectors": unit, "layers": layers, "model_name": "m", "model_hash": ""} | changes)


BEFORE = directions([[1.0, 0.0], [1.0, 0.0], [3.0, 4.0]], model_name="base", model_hash="1")
AFTER = directions([[1.0, 0.0], [-1.0, 0.0], [4.0, 3.0]], model_name="tuned", model_hash="2")
REPORT = DriftReport.of(BEFORE, AFTER)


def test_cosines_keep_their_sign_and_other_weights_are_allowed():
    torch.testing.assert_close(signed_cosines(BEFORE, AFTER), torch.tensor([1.0, -1.0, 0.96]))
    torch.testing.assert_close(signed_cosines(AFTER, BEFORE), signed_cosines(BEFORE, AFTER))
    assert torch.equal(signed_cosines(BEFORE, BEFORE), torch.ones(3))


def test_layers_are_matched_by_index():
    torch.testing.assert_close(signed_cosines(BEFORE.at((2, 0)), AFTER.at((0, 2))), torch.tensor([0.96, 1.0]))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (directions([[1.0, 0.0, 0.0]] * 3), "hidden size, got 2 and 3"),
        (directions([[1.0, 0.0]] * 4), "number of blocks, got 3 and 4"),
        (AFTER.at((0, 1)), r"layers, got \[0, 1, 2\] and \[0, 1\]"),
    ],
)
def test_directions_that_cannot_be_compared(other, message):
    with pytest.raises(ValueError, match=message):
        signed_cosines(BEFORE, other)


def test_the_report_says_what_was_measured():
    assert (REPORT.model_before, REPORT.model_after, REPORT.layers) == ("base", "tuned", (0, 1, 2))
    assert REPORT.table() == [{"layer": i, "cosine": REPORT.cosines[i]} for i in range(3)]
    assert REPORT.to_markdown().splitlines()[2:] == ["| 0 | +1.000 |", "| 1 | -1.000 |", "| 2 | +0.960 |"]


def test_fields_must_fit():
    names = {"model_before": "", "model_after": ""}
    for layers, cosines, message in (
        ((0, 1), (1.0,), "one per layer"),
        ((), (), "one per layer"),
        ((0,), (1.1,), "got 1.1"),
        ((0,), (float("nan"),), "got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            DriftReport(layers=layers, cosines=cosines, **names)


def test_the_figure_shows_every_layer_and_the_negative_side(tmp_path):
    figure = REPORT.plot(tmp_path / "drift.png")
    (axes,) = figure.axes
    assert axes.lines[-1].get_xydata().tolist() == [[i, REPORT.cosines[i]] for i in range(3)]
    assert axes.get_ylim()[0] < -1
    assert "tuned" in axes.get_title()
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")
    REPORT.plot(tmp_path / "drift.svg")
    assert "<svg" in (tmp_path / "drift.svg").read_text()


def test_round_trip(tmp_path):
    REPORT.save(tmp_path / "drift.json")
    assert DriftReport.load(tmp_path / "drift.json") == REPORT
    assert json.loads((tmp_path / "drift.json").read_text())["schema"] == "procon-drift/1"


def test_files_that_are_no_report(tmp_path):
    path = tmp_path / "drift.json"
    with pytest.raises(ValueError, match=r"drift\.json: cannot be read"):
        DriftReport.load(path)
    REPORT.save(path)
    good = json.loads(path.read_text())
    for text in (
        "{",
        "[]",
        json.dumps({**good, "schema": "procon-drift/2"}),
        json.dumps({**good, "cosines": [1.0]}),
        json.dumps({**good, "cosines": ["a", "b", "c"]}),
        json.dumps({key: good[key] for key in good if key != "layers"}),
        json.dumps({**good, "other": 1}),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"drift\.json: no drift report") as caught:
            DriftReport.load(path)
        assert "\n" not in str(caught.value)

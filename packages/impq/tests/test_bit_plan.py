import json
from dataclasses import replace

import numpy as np
import pytest
from pairwise_games import header, pairwise_table, played, random_pairs

from impq.bit_plan import BitPlan
from impq.budget import Budget
from impq.interaction import quadratic
from impq.plan import solve
from impq.value import TableValue


def game():
    rng = np.random.default_rng(0)
    return played(TableValue(pairwise_table(rng.random(6), random_pairs(rng, 6))), header(6), 20)


def test_round_trip(tmp_path):
    plan = solve(game(), Budget(avg_bits=3.0))
    path = tmp_path / "plan.json"
    plan.save(path)
    assert BitPlan.load(path) == plan
    data = json.loads(path.read_text())
    assert data["schema"] == "impq-plan/1"
    assert data["bytes"]["whole_model"] == plan.bytes
    assert data["players"][0]["bits"] == plan.bits["b0"]
    assert data["game_sha256"] == game().sha256
    assert data["objective"]["predicted_delta_nll"] == pytest.approx(quadratic(game()).value(plan.levels))


def test_files_that_are_no_plan(tmp_path):
    path = tmp_path / "plan.json"
    with pytest.raises(ValueError, match=r"plan\.json: cannot be read"):
        BitPlan.load(path)
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "impq-plan/1"),
        ('{"schema": "impq-plan/2"}', "impq-plan/1"),
        ('{"schema": "impq-plan/1"}', "'bits'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            BitPlan.load(path)
    good = solve(game(), Budget(avg_bits=3.0)).to_json()
    for change, message in (
        ({"bytes": {"quantised": 1, "whole_model": 1001}}, "bytes.quantised is 1"),
        ({"players": [{**good["players"][0], "bits": 3}, *good["players"][1:]]}, "b0 has 3 bits"),
        ({"solver": {**good["solver"], "status": "best"}}, "status"),
        ({"budget": {"avg_bits": 3, "bytes": 4}}, "exactly one"),
        ({"budget": {"bit": 3}}, "bit"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            BitPlan.from_json({**good, **change})
        assert "\n" not in str(caught.value)


def test_fields_must_fit():
    plan = solve(game(), Budget(avg_bits=3.0))
    with pytest.raises(ValueError, match="levels"):
        replace(plan, levels=(0,))
    with pytest.raises(ValueError, match="levels"):
        replace(plan, levels=(2,) * 6)
    with pytest.raises(ValueError, match="one size"):
        replace(plan, widths=(8, 4, 2))


def test_plans_written_before_a_field_was_there_can_be_read():
    data = solve(game(), Budget(avg_bits=3.0)).to_json()
    assert data.pop("sequential") is False
    assert BitPlan.from_json(data).sequential is False
    assert BitPlan.from_json({**data, "sequential": True}).sequential is True


@pytest.mark.parametrize(
    ("budget", "within"),
    [
        (Budget(avg_bits=3.0), True),
        (Budget(avg_bits=2.9), False),
        (Budget(avg_bits=3.0, effective=True), True),
        (Budget(avg_bits=2.9, effective=True), False),
        (Budget(bytes=100 + 72), True),
        (Budget(bytes=100 + 71), False),
    ],
)
def test_within_budget(budget, within):
    plan = replace(solve(game(), Budget(avg_bits=3.0)), budget=budget)
    assert (plan.avg_bits, plan.bytes) == (3.0, 172)  # three players of 32 weights in 16 bytes, three in 8
    assert plan.within_budget == within


def test_larger_scales_exceed_effective_bits_and_bytes_only():
    plan = solve(game(), Budget(avg_bits=3.0))
    larger = tuple(replace(player, nbytes=tuple(n + 1 for n in player.nbytes)) for player in plan.players)
    for budget, within in (
        (Budget(avg_bits=3.0), True),
        (Budget(avg_bits=3.0, effective=True), False),
        (Budget(bytes=172), False),
    ):
        assert replace(plan, players=larger, budget=budget).within_budget == within

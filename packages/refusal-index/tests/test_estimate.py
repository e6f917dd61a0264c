import json
import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_index.estimate import SmallCellWarning, UndefinedRefusalIndexWarning, from_rates, refusal_index
from refusal_index.intervals import analytic_se

COUNTS = (1500, 360, 1658, 808)
CELL = st.one_of(st.integers(0, 10), st.integers(0, 5000), st.integers(0, 10**9))


def flags_of(counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_flags_and_counts_agree_in_every_container() -> None:
    expected = refusal_index(counts=COUNTS)
    refused, wrong = flags_of(COUNTS)
    assert refusal_index(refused, wrong) == expected
    assert refusal_index(refused.astype(int), wrong.astype(float)) == expected
    assert refusal_index(pd.Series(refused), pd.Series(wrong)) == expected
    assert expected.counts == COUNTS
    assert expected.n == sum(COUNTS)
    assert expected.table.tolist() == [[1500, 360], [1658, 808]]
    assert expected.refusal_rate == 1860 / 4326
    assert expected.error_rate == 3158 / 4326


def test_both_intervals_cover_the_estimate_alike() -> None:
    res = refusal_index(counts=COUNTS)
    assert res.ci == res.bootstrap_ci
    assert res.ci_kind == "bootstrap"
    assert refusal_index(counts=COUNTS, ci="analytic").ci == res.analytic_ci
    np.testing.assert_allclose(res.ci, res.analytic_ci, atol=0.01)
    narrow = refusal_index(counts=COUNTS, level=0.5)
    assert res.ci[0] < narrow.ci[0] < res.ri < narrow.ci[1] < res.ci[1]


def test_the_seed_decides_the_bootstrap() -> None:
    assert refusal_index(counts=COUNTS, rng=1) == refusal_index(counts=COUNTS, rng=np.random.default_rng(1))
    assert refusal_index(counts=COUNTS, rng=1).ci != refusal_index(counts=COUNTS, rng=2).ci


def test_small_cells_quote_the_analytic_interval() -> None:
    with pytest.warns(SmallCellWarning, match="below 5"):
        res = refusal_index(counts=(22, 3, 189, 32))
    assert res.small_cells
    assert res.ci_kind == "analytic"
    assert res.ci == res.analytic_ci
    assert res.bootstrap_ci is not None
    assert res.bootstrap_ci[1] == 1  # 5 % of the replicates have no refused-and-right question
    assert res.ri == pytest.approx(0.06, abs=0.005)
    assert res.se == pytest.approx(0.16, abs=0.005)


def test_an_expected_cell_below_5_warns_too() -> None:
    with pytest.warns(SmallCellWarning):
        assert refusal_index(counts=(5, 8, 10, 400)).small_cells


def test_an_empty_cell_has_no_interval_unless_corrected() -> None:
    with pytest.warns(SmallCellWarning):
        res = refusal_index(counts=(50, 0, 100, 100))
    assert res.ri == res.rho == 1
    assert res.boundary
    assert np.isnan([*res.ci, *res.analytic_ci, res.se]).all()
    with pytest.warns(SmallCellWarning):
        corrected = refusal_index(counts=(50, 0, 100, 100), correction=0.5)
    assert corrected.ri < 1
    assert not corrected.boundary
    assert corrected.ci[0] < corrected.ri


def test_correction_is_added_to_every_cell() -> None:
    corrected = refusal_index(counts=COUNTS, correction=0.5)
    added = tuple(cell + 0.5 for cell in COUNTS)
    assert corrected.ri == refusal_index(counts=added).ri
    assert corrected.counts == COUNTS
    assert corrected.se == analytic_se(added)
    assert refusal_index(counts=COUNTS, correction=0) == refusal_index(counts=COUNTS, correction="none")


def test_too_many_undefined_replicates_refuse_an_interval() -> None:
    with pytest.warns(SmallCellWarning):
        res = refusal_index(counts=(1, 1, 500, 500))
    assert res.dropped == pytest.approx(math.exp(-2), abs=0.04)
    assert np.isnan(res.ci).all()
    assert not np.isnan(res.ri)


@given(CELL, CELL, CELL, CELL)
@settings(max_examples=150)
def test_any_table_gives_a_consistent_result(n11: int, n10: int, n01: int, n00: int) -> None:
    counts = (n11, n10, n01, n00)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (SmallCellWarning))
        warnings.simplefilter("ignore", UndefinedRefusalIndexWarning)
        if sum(counts) == 0:
            with pytest.raises(ValueError, match="no questions"):
                refusal_index(counts=counts)
            return
        res = refusal_index(counts=counts, resamples=50)
    assert math.isnan(res.ri) == bool(res.undefined)
    assert res.boundary == (not res.undefined and min(counts) == 0)
    if not math.isnan(res.ci[0]):
        assert -1 <= res.ci[0] <= res.ci[1] <= 1
    if not math.isnan(res.analytic_ci[0]):
        assert res.analytic_ci[0] <= res.ri <= res.analytic_ci[1]
    json.dumps(res.to_dict(), allow_nan=False)


def test_to_dict_is_strict_json() -> None:
    with pytest.warns(UndefinedRefusalIndexWarning):
        record = refusal_index(counts=(0, 0, 4, 9)).to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["ri"] is None
    assert record["ci"] == [None, None]
    assert record["counts"] == [0, 0, 4, 9]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": (1, 2, 3)}, "n11, n10, n01, n00"),
        ({"counts": (1, 2, 3, -4)}, "not negative"),
        ({"counts": (1, 2, 3, math.nan)}, "finite"),
        ({"counts": (0, 0, 0, 0)}, "no questions"),
        ({"counts": [COUNTS, COUNTS]}, "one setting"),
        ({"refused": [1, 0], "wrong": [1, 0, 1]}, "same questions"),
        ({"refused": [1, 0], "wrong": [1, math.nan]}, "wrong must hold only"),
        ({"counts": COUNTS, "level": 95}, "level"),
        ({"counts": COUNTS, "resamples": 0}, "resamples"),
        ({"counts": COUNTS, "resamples": 10.5}, "resamples"),
        ({"counts": COUNTS, "resamples": 0, "ci": "analytic"}, "resamples"),
        ({"counts": COUNTS, "ci": "wald"}, "ci must be"),
        ({"counts": COUNTS, "correction": -1}, "correction"),
        ({"counts": COUNTS, "correction": math.nan}, "correction"),
        ({"counts": COUNTS, "on_undefined": "drop"}, "on_undefined"),
    ],
)
def test_value_errors_name_the_argument(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        refusal_index(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("arguments", [{}, {"refused": [1, 0]}, {"refused": [1], "wrong": [1], "counts": COUNTS}])
def test_flags_or_counts(arguments: dict[str, object]) -> None:
    with pytest.raises(TypeError, match="either refused and wrong, or counts"):
        refusal_index(**arguments)  # type: ignore[arg-type]


def test_from_rates_rebuilds_the_table() -> None:
    n = sum(COUNTS)
    c, r, forced = COUNTS[3] / n, (COUNTS[0] + COUNTS[1]) / n, (COUNTS[3] + COUNTS[1]) / n
    res = from_rates(c, r, forced, n, rng=0)
    assert res.ri == pytest.approx(refusal_index(counts=COUNTS).ri, abs=1e-12)
    np.testing.assert_allclose(res.counts, COUNTS, atol=1e-9)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ((0.5, 0.4, 0.3, 100), "forced_accuracy 0.3 is below correct_rate 0.5"),
        ((0.5, 0.6, 0.6, 100), "more than 1"),
        ((0.1, 0.2, 0.6, 100), "forced_accuracy 0.6 exceeds"),
        ((1.1, 0.2, 0.6, 100), "correct_rate must lie"),
        ((0.1, math.nan, 0.6, 100), "refusal_rate must lie"),
        ((0.1, 0.2, 0.2, 0), "n must be"),
    ],
)
def test_from_rates_errors(rates: tuple[float, float, float, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_rates(*rates)


def test_from_rates_forgives_rounding_of_sums() -> None:
    with pytest.warns(SmallCellWarning):
        assert from_rates(0.1, 0.9, 0.1 + 1e-17, 1000).ri == 1

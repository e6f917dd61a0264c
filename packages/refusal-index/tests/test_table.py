import numpy as np
import pandas as pd
import pytest

from refusal_index.table import as_counts, as_flags, cell_counts, empty_margin, paired_flags


def test_cell_counts_equal_a_loop_over_questions() -> None:
    rng = np.random.default_rng(0)
    refused, wrong = rng.random((3, 50)) < 0.4, rng.random((3, 50)) < 0.7
    for row in range(3):
        slow = dict.fromkeys([(True, True), (True, False), (False, True), (False, False)], 0)
        for r, w in zip(refused[row].tolist(), wrong[row].tolist(), strict=True):
            slow[r, w] += 1
        assert cell_counts(refused, wrong)[row].tolist() == list(slow.values())


@pytest.mark.parametrize(
    "values",
    [
        [True, False],
        [1, 0],
        [1.0, 0.0],
        np.array([1, 0], dtype=object),
        pd.Series([True, False], dtype="boolean"),
        pd.Series([1, 0], dtype="Int64"),
    ],
)
def test_flags_of_any_container(values: object) -> None:
    assert as_flags("refused", values).tolist() == [True, False]


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1, 2],
        [1.0, float("nan")],
        [True, None],
        ["yes", "no"],
        pd.Series([True, pd.NA], dtype="boolean"),
        1,
        [10**9],
    ],
)
def test_flags_name_the_argument_they_refuse(values: object) -> None:
    with pytest.raises(ValueError, match="wrong "):
        as_flags("wrong", values)


def test_pairs_must_cover_the_same_questions() -> None:
    with pytest.raises(ValueError, match="same questions"):
        paired_flags([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="align"):
        paired_flags(pd.Series([1, 0], index=["a", "b"]), pd.Series([1, 0], index=["b", "a"]))


@pytest.mark.parametrize("counts", [[1, 2, 3], [1, 2, 3, -1], [1, 2, 3, np.nan], [1, 2, 3, np.inf], 4])
def test_counts_refuse_what_is_no_table(counts: object) -> None:
    with pytest.raises(ValueError, match="counts"):
        as_counts(counts)  # type: ignore[arg-type]


def test_empty_margin() -> None:
    tables = np.array([[0, 0, 3, 4], [3, 4, 0, 0], [0, 3, 0, 4], [3, 0, 4, 0], [0, 1, 1, 0], [0, 1, 1, 1]], dtype=float)
    assert empty_margin(tables).tolist() == [True, True, True, True, False, False]

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from impq.budget import Budget
from impq.player import Player


def player(index, outputs=8, inputs=6, nbytes=(30, 18)):
    name = f"h.{index}"
    return Player(name=name, block=index, modules=(f"{name}.up",), shapes=((outputs, inputs),), nbytes=nbytes)


TWO = (player(0), player(1, inputs=12, nbytes=(58, 34)))


def test_nominal_counts_bits_of_weights():
    budget = Budget(avg_bits=3.0)
    assert budget.costs(TWO, (4, 2)).tolist() == [96, 192]
    assert budget.capacity(TWO, (4, 2)) == 144  # half of what lies between


def test_effective_counts_stored_bytes():
    budget = Budget(avg_bits=4.0, effective=True)
    assert budget.costs(TWO, (4, 2)).tolist() == [12, 24]
    assert budget.capacity(TWO, (4, 2)) == 144 * 4 // 8 - 52


def test_bytes_counts_the_whole_model():
    assert Budget(bytes=1060).capacity(TWO, (4, 2), other_bytes=1000) == 8


def test_three_widths_save_step_by_step():
    three = (player(0, nbytes=(54, 30, 18)), player(1, nbytes=(54, 30, 19)))
    assert Budget(bytes=999).costs(three, (8, 4, 2)).tolist() == [24, 12, 24, 11]
    assert Budget(avg_bits=4).costs(three, (8, 4, 2)).tolist() == [192, 96, 192, 96]


def test_ends_are_exact():
    for budget in (Budget(avg_bits=2.0), Budget(avg_bits=52 * 8 / 144, effective=True), Budget(bytes=52)):
        assert budget.capacity(TWO, (4, 2)) == 0
    for budget in (Budget(avg_bits=4.0), Budget(avg_bits=16), Budget(bytes=10**9)):
        assert budget.capacity(TWO, (4, 2)) == budget.costs(TWO, (4, 2)).sum()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 200))
def test_smallest_feasible_value_in_the_message_is_feasible(outputs, inputs, extra):
    weights = outputs * inputs
    players = (player(0, outputs, inputs, (weights + extra, weights // 2 + extra)),)
    for small in (Budget(avg_bits=1e-6), Budget(avg_bits=1e-6, effective=True), Budget(bytes=1)):
        if small.bytes is not None and weights // 2 + extra + 5 <= 1:
            continue
        if small.effective and weights // 2 + extra == 0:
            continue
        with pytest.raises(ValueError, match="smallest feasible value is") as caught:
            small.capacity(players, (4, 2), other_bytes=5)
        value = float(str(caught.value).split("value is ")[1].split(",")[0])
        named = Budget(bytes=int(value)) if small.bytes else Budget(avg_bits=value, effective=small.effective)
        assert named.capacity(players, (4, 2), other_bytes=5) >= 0


@given(st.integers(52, 88))
def test_average_of_a_real_size_gives_that_size_back(size):
    assert Budget(avg_bits=8 * size / 144, effective=True).capacity(TWO, (4, 2)) == size - 52


def test_a_budget_of_the_highest_width_needs_no_step():
    assert Budget(avg_bits=4.0).most_steps(TWO, (4, 2)) == 0
    assert Budget(avg_bits=9.0).most_steps(TWO, (4, 2)) == 0
    assert Budget(avg_bits=3.99).most_steps(TWO, (4, 2)) == 1
    assert Budget(avg_bits=2.0).most_steps(TWO, (4, 2)) == 2


def test_json_round_trip():
    for budget in (Budget(avg_bits=2.5), Budget(avg_bits=3, effective=True), Budget(bytes=77)):
        assert Budget(**budget.to_json()) == budget


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"avg_bits": 3, "bytes": 5}, "exactly one"),
        ({"avg_bits": 0}, "avg_bits"),
        ({"avg_bits": np.inf}, "avg_bits"),
        ({"bytes": 0}, "bytes"),
        ({"bytes": 2.5}, "bytes"),
        ({"bytes": 5, "effective": True}, "effective"),
    ],
)
def test_wrong_input_names_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        Budget(**arguments)


def test_player_that_grows_is_refused():
    with pytest.raises(ValueError, match=r"h\.0 grows"):
        Budget(bytes=99).costs((player(0, nbytes=(10, 11)),), (4, 2))

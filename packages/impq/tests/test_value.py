import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from impq.value import Memo, TableValue, exhaustive, prefix_order


@given(st.lists(st.lists(st.integers(0, 15), max_size=8), max_size=8))
def test_the_memo_never_evaluates_a_coalition_twice(requests):
    asked = []

    def value(coalitions):
        asked.extend(coalitions)
        return [c / 4 for c in coalitions]

    memo = Memo(value)
    for request in requests:
        assert memo(request).tolist() == [c / 4 for c in request]
    assert len(asked) == len(set(asked)) == memo.evaluations
    assert memo.evaluations + memo.hits == sum(map(len, requests))


def test_known_losses_are_not_evaluated():
    memo = Memo(lambda coalitions: pytest.fail("evaluated"))
    memo.known |= {3: 1.5}
    assert memo([3]).tolist() == [1.5]
    assert (memo.evaluations, memo.hits) == (0, 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_player_demoted_last(bad):
    table = np.zeros(8)
    table[0b101] = bad
    with pytest.raises(ValueError, match=r"demoted last: step 0 \(model.layers.0 to 2 bits\)") as caught:
        Memo(TableValue(table), [f"model.layers.{i} to 2 bits" for i in range(3)])([0b100, 0b101, 0b111])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="step 2"):  # nothing to compare with: the deepest
        Memo(TableValue(table))([0b101])
    with pytest.raises(ValueError, match="every player at its high width"):
        Memo(lambda coalitions: [bad])([0])


def test_a_value_that_returns_too_few_losses_is_refused():
    with pytest.raises(ValueError, match="1 losses for 2 coalitions"):
        Memo(lambda coalitions: [0.0])([0, 1])


@pytest.mark.parametrize(("players", "nodes"), [(1, 2), (3, 14), (8, 510)])
def test_prefix_order_walks_the_trie_once(players, nodes):
    order = prefix_order(range(1 << players), players)
    assert sorted(order) == list(range(1 << players))
    rows = [[coalition >> i & 1 for i in range(players)] for coalition in order]
    cost, last = 0, None
    for row in rows:
        same = 0 if last is None else next(i for i in range(players) if row[i] != last[i])
        cost += players - same  # blocks recomputed behind the first that differs
        last = row
    assert cost == nodes


def test_exhaustive_gives_the_table_back():
    table = np.random.default_rng(0).random(64)
    assert np.array_equal(exhaustive(TableValue(table), 6), table)
    with pytest.raises(ValueError, match=r"1\.\.20"):
        exhaustive(TableValue(table), 21)


@pytest.mark.parametrize("table", [[], [1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]]])
def test_a_table_of_no_game_is_refused(table):
    with pytest.raises(ValueError, match="table"):
        TableValue(table)

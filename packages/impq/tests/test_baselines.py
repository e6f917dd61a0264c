import numpy as np
import pytest
from pairwise_games import header, played

from impq import baselines
from impq.value import TableValue
from impq.walks import coalition_of, levels

TABLE = np.random.default_rng(0).random(64)


class Counting(TableValue):
    asked = 0

    def __call__(self, coalitions):
        self.asked += len(coalitions)
        return super().__call__(coalitions)


def test_isolated_and_promoted_are_differences_at_the_two_ends():
    value = Counting(TABLE)
    found = baselines.isolated(value, 6)
    assert found == pytest.approx([TABLE[1 << i] - TABLE[0] for i in range(6)])
    assert value.asked == 7
    value = Counting(TABLE)
    found = baselines.isolated_promote(value, 6)
    assert found == pytest.approx([TABLE[63] - TABLE[63 ^ 1 << i] for i in range(6)])
    assert value.asked == 7


def test_more_widths_are_measured_step_by_step():
    value = Counting(TABLE)
    for measure, others in ((baselines.isolated, 0), (baselines.isolated_promote, 2)):
        expected = []
        for player in range(3):
            row = []
            for level in range(3):
                state = [others] * 3
                state[player] = level
                row.append(TABLE[coalition_of(state, 3)])
            expected += [row[1] - row[0], row[2] - row[1]]
        assert measure(value, 3, 3) == pytest.approx(expected)
    assert value.asked == 14


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_greedy_takes_the_best_measured_step(depth):
    value = Counting(TABLE)
    order, losses = baselines.greedy_order(value, 6, depth)
    assert value.asked == depth * 6 - depth * (depth - 1) // 2
    state = 0
    for step, loss in zip(order.tolist(), losses, strict=True):
        options = {i: TABLE[state | 1 << i] for i in range(6) if not state >> i & 1}
        assert step == min(options, key=options.get)
        state |= 1 << step
        assert loss == TABLE[state]


def test_greedy_of_more_widths_goes_through_states_of_the_game():
    order, losses = baselines.greedy_order(TableValue(TABLE), 3, 6, widths=3)
    state = 0
    for step, loss in zip(order.tolist(), losses, strict=True):
        state |= 1 << step
        levels(state, 3, 3)  # raises for a state that is none
        assert loss == TABLE[state]
    with pytest.raises(ValueError, match=r"1\.\.6"):
        baselines.greedy_order(TableValue(TABLE), 3, 7, widths=3)


def test_an_additive_game_has_one_answer():
    a = np.array([0.3, 0.1, 0.4, 0.2])
    value = TableValue((np.arange(16)[:, None] >> np.arange(4) & 1) @ a)
    assert baselines.isolated(value, 4) == pytest.approx(a)
    assert baselines.isolated_promote(value, 4) == pytest.approx(a)
    assert baselines.greedy_order(value, 4, 4)[0].tolist() == [1, 3, 0, 2]
    assert played(value, header(4), 1).shapley == pytest.approx(a)


def test_controls_need_no_value():
    scores = np.arange(5.0)
    assert sorted(baselines.shuffled(scores, 0)) == scores.tolist()
    assert {tuple(baselines.shuffled(scores, seed)) for seed in range(20)} != {tuple(scores)}
    assert np.array_equal(baselines.random_scores(5, 1), baselines.random_scores(5, 1))
    assert not np.array_equal(baselines.random_scores(5, 1), baselines.random_scores(5, 2))
    assert np.argsort(baselines.first_low(4)).tolist() == [0, 1, 2, 3]
    assert np.argsort(baselines.last_low(4)).tolist() == [3, 2, 1, 0]
    assert baselines.first_low(2, 3).tolist() == [1, 1, 2, 2]

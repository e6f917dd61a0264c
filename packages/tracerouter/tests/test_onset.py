from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import mannwhitneyu

from tracerouter.onset import (
    attention_entropy,
    attention_flow,
    check_rows,
    disturbance,
    entropy_scores,
    js_scores,
    last_rows,
    onset_layer,
    sensitivity_scores,
)


def attention(seed, rows=2, heads=3, tokens=5):
    scores = torch.randn(rows, heads, tokens, tokens, generator=torch.Generator().manual_seed(seed))
    later = torch.ones(tokens, tokens).triu(1).bool()
    return scores.masked_fill(later, -math.inf).softmax(-1)


def spots(tokens, *places):
    mask = torch.zeros(len(places), tokens, dtype=torch.bool)
    for row, places_of in enumerate(places):
        mask[row, list(places_of)] = True
    return mask


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_flow_and_disturbance_are_the_written_sums(seed):
    plus, minus = attention(seed), attention(seed + 1)
    E, M = [(4,), (3, 4)], [(1, 2), (0,)]
    flow = attention_flow(plus, spots(5, *E), spots(5, *M))
    disturb = disturbance(plus, minus, spots(5, *E), spots(5, *M))
    for b in range(2):
        reads = [plus[b, h, i, j].item() for h in range(3) for i in E[b] for j in M[b]]
        assert flow[b].item() == pytest.approx(sum(reads) / 3 / len(E[b]), abs=1e-5)
        rest = [j for j in range(5) if j not in (*E[b], *M[b])]
        changes = [(plus - minus)[b, h, i, j].abs().item() / 2 for h in range(3) for i in E[b] for j in rest]
        assert disturb[b].item() == pytest.approx(sum(changes) / 3 / len(E[b]), abs=1e-5)


def test_the_set_that_comes_later_reads():
    weights = attention(0)
    early, late = spots(5, (0,), (1,)), spots(5, (3,), (4,))
    assert torch.equal(attention_flow(weights, early, late), attention_flow(weights, late, early))
    assert (attention_flow(weights, early, late) > 0).all()


def test_padding_that_holds_no_numbers_does_not_matter():
    weights, E, M = attention(3), spots(5, (4,), (4,)), spots(5, (1,), (2,))
    padded = torch.full((2, 3, 7, 7), math.nan)
    padded[:, :, 2:, :2] = 0
    padded[:, :, 2:, 2:] = weights
    shift = lambda mask: torch.nn.functional.pad(mask, (2, 0))  # noqa: E731
    assert torch.equal(attention_flow(padded, shift(E), shift(M)), attention_flow(weights, E, M))
    mask = shift(torch.ones(2, 5, dtype=torch.bool))
    torch.testing.assert_close(attention_entropy(padded, mask), attention_entropy(weights, mask[:, 2:]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_last_rows_align_at_the_last_token(side):
    weights = attention(1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]] if side == "right" else [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    weights[1] = 0
    inner = attention(2, rows=1, tokens=3)[0]
    if side == "right":
        weights[1, :, :3, :3] = inner
    else:
        weights[1, :, 2:, 2:] = inner
    rows = last_rows(weights, mask)
    torch.testing.assert_close(rows[0], weights[0, :, 4].mean(0))
    torch.testing.assert_close(rows[1], torch.cat([torch.zeros(2), inner[:, 2].mean(0)]))


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_js_is_scipys(seed):
    generator = torch.Generator().manual_seed(seed)
    plus, minus = (torch.rand(2, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    plus[0, :3] = 0
    expected = [jensenshannon(p, q) ** 2 for p, q in zip(plus.numpy(), minus.numpy(), strict=True)]
    assert js_scores(plus, minus) == pytest.approx(expected, abs=1e-9)


def test_js_of_disjoint_rows_is_ln_2_and_lengths_are_compared():
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert js_scores(one, other, mean_lengths=(10.0, 10.5)) == pytest.approx([math.log(2)])
    with pytest.warns(UserWarning, match="10.0 tokens on average and matched ones 12.0"):
        js_scores(one, other, mean_lengths=(10.0, 12.0))


def test_entropy_of_uniform_rows_is_the_log_of_their_length():
    weights = torch.ones(1, 2, 3, 3).tril()
    weights /= weights.sum(-1, keepdim=True)
    expected = (math.log(1) + math.log(2) + math.log(3)) / 3
    assert attention_entropy(weights, torch.ones(1, 3)).item() == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.lists(st.integers(0, 5), min_size=1, max_size=9))
@settings(max_examples=30)
def test_entropy_score_is_the_auroc_of_the_rank_test(plus, minus):
    statistic = mannwhitneyu(plus, minus).statistic
    expected = abs(2 * statistic / len(plus) / len(minus) - 1)
    assert entropy_scores(torch.tensor([plus]).T.float(), torch.tensor([minus]).T.float()) == pytest.approx([expected])


def test_sensitivity_is_the_mean_over_pairs():
    plus, minus, disturb = (
        torch.tensor([[0.5, 0.2], [0.7, 0.4]]),
        torch.tensor([[0.1, 0.2], [0.1, 0.0]]),
        torch.ones(2, 2),
    )
    assert sensitivity_scores(plus, minus, disturb) == pytest.approx([0.5 - 1, 0.2 - 1])


def test_half_precision_rows_may_sum_a_little_off():
    weights = torch.full((1, 1, 2, 2), 0.5, dtype=torch.bfloat16)
    weights[0, 0, 1, 0] += 0.004
    check_rows(weights, torch.ones(1, 2))
    with pytest.raises(ValueError, match="must sum to 1"):
        check_rows(weights.float(), torch.ones(1, 2))


A, ONE = torch.ones(1, 1, 1, 1), torch.ones(1, 1, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attention_flow(torch.ones(1, 2, 3), ONE, ONE), r"attention must be \[B, H, T, T\]"),
        (lambda: attention_flow(A, torch.ones(1, 2), ONE), r"targets must be \[1, 1\]"),
        (lambda: attention_flow(A, ONE, ~ONE), "modifiers is empty for prompt 0"),
        (lambda: attention_flow(A * 0.9, ONE, ONE), "must sum to 1, one is off by 0.1"),
        (lambda: attention_flow(A * math.nan, ONE, ONE), "must sum to 1"),
        (lambda: disturbance(A, attention(0), ONE, ONE), "pairs of equal length"),
        (lambda: sensitivity_scores(torch.ones(0, 2), torch.ones(0, 2), torch.ones(0, 2)), "n >= 1"),
        (lambda: js_scores(torch.ones(2, 3), torch.ones(1, 3)), "the same layers"),
        (lambda: js_scores(torch.zeros(1, 3), torch.ones(1, 3)), "hold weight in every layer"),
        (lambda: entropy_scores(torch.ones(1, 3), torch.ones(1, 2)), "the same layers"),
        (lambda: entropy_scores(torch.ones(0, 3), torch.ones(1, 3)), "at least one prompt"),
        (lambda: onset_layer([1.0]), "at least two layers"),
        (lambda: onset_layer([1.0, math.nan]), "NaN"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()

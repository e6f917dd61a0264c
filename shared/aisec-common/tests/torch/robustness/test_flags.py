from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from aisec_common.torch.robustness import apgd, beats, noise, pgd, square
from aisec_common.torch.robustness.flags import Seen, raised, white_box
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

N, EPS = 300, 0.1
STRONG, SHORT, APGD, SQUARE, NOISE = pgd(100), pgd(10), apgd("ce"), square(), noise()


def right(count: int) -> np.ndarray:
    """`count` of N images right, nested: the weaker attack leaves all that the stronger leaves."""
    return np.arange(N) < count


def seen(**change: object) -> Seen:
    """An honest model: the stronger the attack, the lower the accuracy."""
    rungs = (SHORT, STRONG, APGD, SQUARE, NOISE)
    counts = {SHORT: 205, STRONG: 200, APGD: 198, SQUARE: 230, NOISE: 290}
    base = Seen(
        rungs=rungs,
        eps=(EPS,),
        right={(rung.name, EPS): right(counts[rung]) for rung in rungs},
        probes=(),
        grid=[(0.0, right(295)), (0.05, right(250)), (0.1, right(200)), (0.2, right(90)), (0.5, right(10))],
        chance=0.11,
        cosine=None,
        zero_gradients=0.0,
    )
    return replace(base, **change)


def with_counts(**counts: int) -> Seen:
    base = seen()
    rungs = {"short": SHORT, "strong": STRONG, "apgd": APGD, "square": SQUARE, "noise": NOISE}
    return replace(base, right=base.right | {(rungs[name].name, EPS): right(n) for name, n in counts.items()})


def codes(found: Seen) -> list[str]:
    return [flag.code for flag in raised(found)]


def test_an_honest_model_raises_none():
    assert codes(seen()) == []


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (with_counts(square=180), "F1"),
        (with_counts(noise=180), "F1"),
        (seen(grid=[(0.0, right(295)), (0.1, right(200)), (0.2, right(230)), (0.5, right(10))]), "F2"),
        (seen(grid=[(0.0, right(295)), (0.1, right(200)), (0.5, right(40))]), "F2"),
        (with_counts(short=185), "F3"),
        (with_counts(strong=185), "F4"),
        (seen(cosine=0.1), "F5"),
        (seen(cosine=float("nan")), "F5"),
        (seen(zero_gradients=0.06), "F6"),
    ],
)
def test_each_flag_is_raised_by_its_own_sign(found, code):
    assert code in codes(found)
    flag = next(flag for flag in raised(found) if flag.code == code)
    assert str(flag).startswith(f"{code}: ")
    assert flag.evidence
    assert "\n" not in str(flag)


@pytest.mark.parametrize(
    "found",
    [
        with_counts(square=197, noise=197),  # within 1 pp
        seen(cosine=0.2, zero_gradients=0.05),
        seen(grid=[(0.0, right(295)), (0.5, right(38))]),  # chance + 1.7 pp
    ],
)
def test_thresholds_are_not_flags(found):
    assert codes(found) == []


def test_the_adaptive_rungs_are_the_white_box_where_there_are_any():
    adaptive = pgd(20, draws=8)
    assert white_box([SHORT, adaptive, NOISE]) == [adaptive]
    assert white_box([SHORT, STRONG, NOISE]) == [SHORT, STRONG]


def test_only_attacks_that_differ_in_length_alone_are_compared():
    other = pgd(10, restarts=5)
    base = seen(rungs=(STRONG, replace(other, name="other")))
    assert codes(replace(base, right=base.right | {("other", EPS): right(100)})) == []
    few, many = pgd(10, draws=8), pgd(10, draws=32)
    drawn = replace(base, rungs=(replace(few, name="few"), replace(many, name="many")))
    pair = {("few", EPS): right(100), ("many", EPS): right(150)}
    assert codes(replace(drawn, right=pair)) == ["F3"]


def test_probes_are_compared_on_their_own_images():
    base = seen(probes=(replace(STRONG, name="probe"),), rungs=(APGD,))
    few = {("probe", EPS): right(20)[:100]}
    assert codes(replace(base, right=base.right | few)) == ["F4"]


def test_rungs_without_a_white_box_are_not_compared():
    assert codes(seen(rungs=(NOISE,))) == []


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 3))
def test_beats_is_one_point_and_the_exact_paired_test(a_only, b_only, hundreds):
    n = 100 * hundreds + 120
    a, b = np.ones(n, bool), np.ones(n, bool)
    a[:a_only] = False
    b[a_only : a_only + b_only] = False
    both, fewer = a_only + b_only, min(a_only, b_only)
    p = min(1.0, 2 * float(binom.cdf(fewer, both, 0.5))) if a_only != b_only else 1.0
    assert beats(a, b) == (a_only - b_only > 0.01 * n and p < 0.01)
    assert not (beats(a, b) and beats(b, a))


def test_beats_needs_the_same_images():
    with pytest.raises(ValueError, match="same images"):
        beats(right(3), right(3)[:10])

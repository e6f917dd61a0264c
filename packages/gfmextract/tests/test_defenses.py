import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_victims import LinearVictim, egos_of, worded_graph
from scipy.stats import kstest
from sklearn.decomposition import TruncatedSVD

from gfmextract.defenses import Budget, LabelOnly, Noise, Project, Quantize
from gfmextract.victim import encode_egos

EGOS = egos_of(worded_graph())
ANSWERS = encode_egos(LinearVictim(unit=False), EGOS)


@pytest.mark.parametrize("mode", ["keyed", "fresh"])
def test_noise_is_normal_and_relative_to_each_answers_size(mode):
    given = Noise(sigma=0.5, mode=mode, key=3)(ANSWERS, EGOS, None)
    xi = (given - ANSWERS).double() / (0.5 * ANSWERS.square().mean(1, keepdim=True).sqrt())
    assert kstest(xi.flatten().numpy(), "norm").pvalue > 0.01
    assert abs(float(xi[:30].flatten() @ xi[30:].flatten())) / 960 < 4 / math.sqrt(960), "rows do not share noise"


def test_keyed_noise_depends_on_the_key_and_the_subgraph_alone():
    noise = Noise(sigma=1.0, key=3)
    given = noise(ANSWERS, EGOS, None)
    assert torch.equal(given, noise(ANSWERS, EGOS, None))
    some = torch.tensor([5, 2, 5])
    assert torch.equal(noise(ANSWERS[some], EGOS[some], None), given[some])
    assert not torch.isclose(given, Noise(sigma=1.0, key=4)(ANSWERS, EGOS, None)).all(1).any()


def test_fresh_noise_differs_each_time_and_repeats_from_its_seed():
    first, second = Noise(sigma=1.0, mode="fresh", key=3), Noise(sigma=1.0, mode="fresh", key=3)
    once = first(ANSWERS, EGOS, None)
    assert torch.equal(once, second(ANSWERS, EGOS, None))
    assert not torch.equal(once, first(ANSWERS, EGOS, None))


@given(bits=st.integers(1, 31), seed=st.integers(0, 99), size=st.sampled_from([1e-3, 1.0, 1e3]))
@settings(max_examples=40)
def test_quantised_answers_take_few_values_near_the_true_ones(bits, seed, size):
    answers = size * torch.randn(6, 9, generator=torch.Generator().manual_seed(seed))
    given = Quantize(bits=bits)(answers, None, None)
    largest = answers.abs().amax(1, keepdim=True)
    assert ((given - answers).abs() <= largest * (2.0**-bits + 2e-7)).all()
    if bits <= 4:
        levels = (np.arange(2**bits) + 0.5) * 2 / 2**bits - 1
        scaled = (given / largest).numpy()
        assert np.abs(scaled[..., None] - levels).min(-1).max() < 1e-5


def test_an_answer_of_zeros_stays_zero():
    assert not Quantize(bits=3)(torch.zeros(2, 4), None, None).any()
    assert not Noise(sigma=1.0)(torch.zeros(60, 4), EGOS, None).any()


def test_projected_answers_are_the_truncated_svd_of_the_reference():
    given = Project(k=5, reference=ANSWERS)(ANSWERS, EGOS, None)
    svd = TruncatedSVD(5, algorithm="arpack").fit(ANSWERS.double().numpy())
    expected = svd.inverse_transform(svd.transform(ANSWERS.double().numpy()))
    np.testing.assert_allclose(given.numpy(), expected, atol=1e-5)
    assert torch.linalg.matrix_rank(given.double(), rtol=1e-4) == 5
    torch.testing.assert_close(Project(k=5, reference=ANSWERS)(given, EGOS, None), given)


def test_budget_and_label_only_leave_embeddings_alone():
    assert Budget(n=3)(ANSWERS, EGOS, None) is ANSWERS
    assert LabelOnly()(ANSWERS, EGOS, None) is ANSWERS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Noise(sigma=-1.0), "sigma must be at least 0 and finite, got -1"),
        (lambda: Noise(sigma=math.nan), "sigma must be at least 0 and finite, got nan"),
        (lambda: Noise(sigma=1.0, mode="averaged"), "mode must be keyed or fresh, got 'averaged'"),
        (lambda: Quantize(bits=0), "bits must lie between 1 and 32, got 0"),
        (lambda: Quantize(bits=33), "bits must lie between 1 and 32, got 33"),
        (
            lambda: Project(k=33, reference=ANSWERS),
            r"k must lie between 1 and both sides of reference, got 33 for \[60, 32\]",
        ),
        (lambda: Project(k=2, reference=ANSWERS)(torch.ones(2, 3), None, None), "reference is 32 wide, answers are 3"),
        (lambda: Budget(n=-1), "n must be at least 0, got -1"),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()

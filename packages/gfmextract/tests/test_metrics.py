import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score
from sklearn.metrics.pairwise import cosine_similarity

from gfmextract.metrics import accuracy, fidelity, linear_cka, mean_cosine, measures

seeds = st.integers(0, 10_000)


def drawn(seed, rows=20, width=6, classes=4):
    rng = torch.Generator().manual_seed(seed)
    a, z = torch.randn(2, rows, width, generator=rng).double()
    text = torch.randn(classes, width, generator=rng).double()
    return a, z, torch.randint(classes, (rows,), generator=rng), text


@given(seeds)
@settings(max_examples=20)
def test_decisions_are_those_of_scikit_learn(seed):
    a, z, y, text = drawn(seed)
    of_a, of_z = (cosine_similarity(each, text).argmax(1) for each in (a, z))
    found = measures(a, z, y, text)
    assert found["accuracy"] == pytest.approx(accuracy_score(y, of_a))
    assert found["victim_accuracy"] == pytest.approx(accuracy_score(y, of_z))
    assert found["gap"] == pytest.approx(accuracy_score(y, of_z) - accuracy_score(y, of_a))
    assert found["fidelity"] == pytest.approx(accuracy_score(of_z, of_a)) == fidelity(a, z, text)
    assert found["cosine"] == pytest.approx(np.diag(cosine_similarity(a, z)).mean())


@given(seeds)
@settings(max_examples=20)
def test_cka_is_that_of_centred_gram_matrices(seed):
    a, z, _, _ = drawn(seed)
    centre = np.eye(20) - 1 / 20
    k, other = (centre @ each.numpy() @ each.numpy().T @ centre for each in (a, z))
    expected = np.trace(k @ other) / math.sqrt(np.trace(k @ k) * np.trace(other @ other))
    assert linear_cka(a, z) == pytest.approx(expected)
    assert linear_cka(a, a[:, :1] * 0) != linear_cka(a, z)


def test_cka_of_a_constant_is_nan():
    assert math.isnan(linear_cka(torch.ones(3, 2), torch.eye(3)))


def test_one_long_vector_does_not_settle_the_cka():
    a, z, y, text = drawn(0, rows=200)
    a[0], z[0] = a[0] * 1e4, a[0] * 1e4
    assert linear_cka(a, z) > 0.999
    assert measures(a, z, y, text)["cka"] < 0.5


def test_without_a_text_side_only_the_geometry_is_measured():
    a, z, y, _ = drawn(0)
    found = measures(a, z, y, None)
    assert [name for name, value in found.items() if math.isfinite(value)] == ["cosine", "cka"]
    assert list(found) == list(measures(*drawn(0)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy(torch.ones(2), torch.ones(3)), "predicted must have the shape of y"),
        (lambda: mean_cosine(torch.ones(2, 3), torch.ones(2, 4)), r"a and z must both be \[G, d\]"),
        (lambda: linear_cka(torch.ones(2, 3), torch.ones(3, 3)), "a and z must have one row"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

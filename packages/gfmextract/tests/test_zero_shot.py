import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from gfmextract.zero_shot import certified_agreement, class_scores, margins, predict

seeds = st.integers(0, 10_000)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(seed=seeds, classes=st.integers(2, 6))
def test_scores_are_cosines(seed, classes):
    z, text = drawn(seed, 9, 5), drawn(seed + 1, classes, 5)
    expected = torch.from_numpy(cosine_similarity(z.numpy(), text.numpy()))
    torch.testing.assert_close(class_scores(z, text), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(predict(z, text), expected.argmax(1))
    ordered = expected.sort(1).values
    torch.testing.assert_close(margins(z, text), ordered[:, -1] - ordered[:, -2], rtol=1e-4, atol=1e-6)


@given(seed=seeds, noise=st.floats(0, 1))
def test_what_is_certified_is_what_a_loop_certifies(seed, noise):
    z, text = drawn(seed, 12, 6).double(), drawn(seed + 1, 3, 6).double()
    a = z + noise * drawn(seed + 2, 12, 6)
    sure = 0
    for mine, theirs in zip(a, z, strict=True):
        scores = sorted((theirs @ row / theirs.norm() / row.norm()).item() for row in text)
        sure += scores[-1] - scores[-2] > 2 * (mine / mine.norm() - theirs / theirs.norm()).norm().item()
    assert certified_agreement(a, z, text) == pytest.approx(sure / 12)


def test_a_copy_is_certified_wherever_there_is_a_margin():
    z = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])  # the second has none
    assert certified_agreement(z, z, torch.eye(2)) == pytest.approx(2 / 3)


def test_opposite_vectors_are_never_certified():
    z = drawn(0, 30, 4)
    assert certified_agreement(-z, z, drawn(1, 3, 4)) == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: class_scores(torch.ones(2, 3), torch.ones(1, 3)), "at least two classes"),
        (lambda: class_scores(torch.ones(2, 3), torch.ones(2, 4)), "z and text must be"),
        (lambda: certified_agreement(torch.ones(2, 3), torch.ones(3, 3), torch.ones(2, 3)), "a and z must have one"),
        (lambda: certified_agreement(torch.ones(0, 3), torch.ones(0, 3), torch.ones(2, 3)), "at least one row"),
    ],
)
def test_wrong_shapes_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()

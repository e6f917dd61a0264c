import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from uadat.statistics import BatchUncertainty, ClassGaussians, batch_moments, instance_statistics

SEEDS = st.integers(0, 10**6)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(SEEDS)
@settings(max_examples=20)
def test_instance_statistics_loop_by_loop(seed):
    z = random(3, 2, 4, 5, seed=seed)
    means, stds = instance_statistics(z)
    for i in range(3):
        for c in range(2):
            values = z[i, c].numpy()
            assert means[i, c].item() == pytest.approx(values.mean(), abs=1e-12)
            assert stds[i, c].item() == pytest.approx(np.sqrt(values.var() + 1e-5), abs=1e-12)


def test_a_constant_channel_has_a_gradient():
    z = torch.zeros(2, 3, 4, 4, requires_grad=True)
    instance_statistics(z)[1].sum().backward()
    assert z.grad.isfinite().all()


@given(arrays(float, (6, 3), elements=st.floats(-5, 5)))
def test_batch_moments(values):
    mean, variance = batch_moments(torch.tensor(values))
    np.testing.assert_allclose(mean, values.mean(0), atol=1e-12)
    np.testing.assert_allclose(variance, values.var(0, ddof=1), atol=1e-10)


def test_a_large_batch_is_its_own_uncertainty():
    uncertainty = BatchUncertainty()
    means, stds = random(20, 3), random(20, 3, seed=1).abs()
    uncertainty(*(random(20, 3, seed=s) * 9 for s in (2, 3)))
    root, of_stds = uncertainty(means, stds)
    torch.testing.assert_close(root, (means.var(0) + 1e-6).sqrt())
    torch.testing.assert_close(of_stds, (stds.var(0) + 1e-6).sqrt())


def test_a_small_batch_takes_the_moving_average():
    uncertainty = BatchUncertainty()
    batches = [random(n, 3, seed=n) for n in (20, 8)]
    for values in batches:
        root, _ = uncertainty(values, values)
    average = 0.9 * batches[0].var(0) + 0.1 * batches[1].var(0)
    torch.testing.assert_close(root, (average + 1e-6).sqrt())
    torch.testing.assert_close(uncertainty(batches[0][:1], batches[0][:1])[0], root)  # one row: nothing to add


def test_one_row_before_any_batch():
    with pytest.raises(ValueError, match="images must be a batch of at least 2"):
        BatchUncertainty()(random(1, 3), random(1, 3))


def test_nothing_has_a_gradient():
    means = random(20, 3).requires_grad_()
    assert not any(scale.requires_grad for scale in BatchUncertainty()(means, means))


def test_low_rank_is_the_covariance_where_the_rank_suffices():
    means = random(40, 8) @ random(8, 8, seed=1)
    root, _ = BatchUncertainty("lowrank")(means, means)
    np.testing.assert_allclose(root.T @ root, np.cov(means.numpy().T), rtol=1e-8, atol=1e-10)


def test_low_rank_keeps_the_leading_directions():
    means = random(60, 12) * torch.arange(1, 13)
    root, _ = BatchUncertainty("lowrank")(means, means)
    assert root.shape == (8, 12)
    values = np.linalg.eigvalsh(np.cov(means.numpy().T))
    np.testing.assert_allclose((root.square().sum(1)).sort().values, values[-8:], rtol=1e-8)


def test_cov_is_checked():
    with pytest.raises(ValueError, match="cov must be 'diag' or 'lowrank'"):
        BatchUncertainty("full")


def test_class_gaussians_are_those_of_the_examples_at_first():
    gaussians = ClassGaussians()
    means, labels = random(30, 4), torch.arange(30) % 3
    for rows in (slice(0, 12), slice(12, 20)):
        gaussians.update(means[rows], labels[rows], 5)
    for label in range(3):
        own = means[:20][labels[:20] == label]
        # weights of .1 and more: an average over all examples until the tenth of them comes in
        torch.testing.assert_close(gaussians.first[label], own.mean(0))
    assert gaussians.seen.tolist() == [7, 7, 6, 0, 0]


def test_class_gaussians_forget():
    gaussians = ClassGaussians()
    gaussians.update(torch.zeros(100, 1), torch.zeros(100, dtype=torch.long), 2)
    gaussians.update(torch.ones(1, 1), torch.zeros(1, dtype=torch.long), 2)
    assert gaussians.first[0].item() == pytest.approx(0.1)


def test_distance_is_mahalanobis():
    gaussians = ClassGaussians()
    means, labels = random(40, 3), torch.arange(40) % 2
    gaussians.update(means, labels, 3)
    points, of = random(5, 3, seed=5), torch.tensor([0, 1, 0, 1, 2])
    found = gaussians.distance_to(of)(points)
    for i in range(4):
        own = means[labels == of[i]].numpy()
        expected = ((points[i].numpy() - own.mean(0)) ** 2 / own.var(0)).mean()
        assert found[i].item() == pytest.approx(expected, rel=1e-9)
    assert found[4] == 0  # a class never seen
    assert ClassGaussians().distance_to(of)(points).tolist() == [0] * 5


def test_buffers_travel_in_the_state_dict():
    gaussians, uncertainty = ClassGaussians(), BatchUncertainty()
    gaussians.update(random(9, 2), torch.arange(9) % 3, 3)
    uncertainty(random(20, 2), random(20, 2, seed=1))
    for held, fresh in ((gaussians, ClassGaussians()), (uncertainty, BatchUncertainty())):
        fresh.load_state_dict(held.state_dict())
        for name, value in held.state_dict().items():
            assert torch.equal(fresh.state_dict()[name], value)

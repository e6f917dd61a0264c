import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interference_nn.interference import OPERATORS, mosaic, stack_channels, superpose

seeds, alphas = st.integers(0, 2**31), st.floats(0, 1)


def pair(seed, shape=(4, 3, 6, 8)):
    rng = torch.Generator().manual_seed(seed)
    # ends of the range included: that is where rounding would leave it
    return [(1.2 * torch.rand(shape, generator=rng) - 0.1).clamp(0, 1) for _ in range(2)]


@given(seeds, alphas)
def test_superpose_is_convex_and_in_range(seed, alpha):
    x, b = pair(seed)
    z = superpose(x, b, alpha)
    assert z.min() >= 0
    assert z.max() <= 1
    assert torch.allclose(z, (1 - alpha) * x + alpha * b, atol=1e-6)
    each = superpose(x, b, torch.tensor([alpha, 0.0, 1.0, 0.5]))
    assert torch.equal(each[1], x[1])
    assert torch.equal(each[2], b[2])
    assert torch.allclose(each[0], z[0], atol=1e-6)


@given(seeds)
def test_mosaic_is_the_averaged_canvas(seed):
    x, b = pair(seed)
    places = torch.randint(4, (4,), generator=torch.Generator().manual_seed(seed))
    canvas = b.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for i, place in enumerate(places.tolist()):
        top, left = place // 2 * 6, place % 2 * 8
        canvas[i, :, top : top + 6, left : left + 8] = x[i]
    wanted = torch.nn.functional.interpolate(canvas, scale_factor=0.5, mode="area")
    assert torch.allclose(mosaic(x, b, places), wanted, atol=1e-6)


def test_channels_are_stacked():
    x, b = pair(0)
    assert torch.equal(stack_channels(x, b)[:, :3], x)
    assert torch.equal(stack_channels(x, b)[:, 3:], b)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_differentiable(name):
    x, b = (image[:2].double().requires_grad_() for image in pair(1))
    places = torch.tensor([0, 3])
    assert torch.autograd.gradcheck(lambda x, b: OPERATORS[name](x, b, 0.3, places), (x, b))


def test_odd_sides_are_refused():
    with pytest.raises(ValueError, match="even sides"):
        mosaic(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4), torch.tensor([0]))

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from procon.projection import project, projection_term

NORMS, REDUCTIONS = ("abs", "l2_tokens", "squared"), ("mean", "layer_sum", "paper_sum")
BOTH = list(itertools.product(NORMS, REDUCTIONS))


def batch(seed, rows=3, tokens=5, layers=2):
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, tokens, layers, generator=draw)
    z_0 = torch.randn(rows, tokens, layers, generator=draw)
    return z, z_0, torch.rand(rows, tokens, generator=draw) < 0.6


def slow_term(z, z_0, mask, norm, reduction, scale, segments):
    """The definition in loops over Python floats."""
    rows, tokens, layers = z.shape
    samples, total, count = {}, 0.0, 0
    for b, t in itertools.product(range(rows), range(tokens)):
        if mask[b, t]:
            count += 1
            moved = [(float(z[b, t, i]) - float(z_0[b, t, i])) / float(scale[i]) for i in range(layers)]
            samples.setdefault((b, int(segments[b, t])), []).append(moved)
    for moved in samples.values():
        for layer in zip(*moved, strict=True):
            if norm == "abs":
                total += sum(abs(x) for x in layer)
            elif norm == "squared":
                total += sum(x * x for x in layer)
            else:
                total += math.sqrt(sum(x * x for x in layer))
    divisor = len(samples) if reduction == "paper_sum" or norm == "l2_tokens" else count
    return total / max(divisor * (layers if reduction == "mean" else 1), 1)


@pytest.mark.parametrize(("norm", "reduction"), BOTH)
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), packed=st.booleans())
def test_term_is_its_definition(norm, reduction, seed, packed):
    z, z_0, mask = batch(seed)
    scale = torch.tensor([0.5, 3.0])
    segments = torch.tensor([[0, 0, 1, 1, 2], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1]]) * packed
    expected = slow_term(z, z_0, mask, norm, reduction, scale, segments)
    given_segments = segments if packed else None
    term = projection_term(z, z_0, mask, norm=norm, reduction=reduction, scale=scale, segments=given_segments)
    assert term.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("norm", "reduction"), BOTH)
def test_step_0_has_no_term_and_a_zero_gradient(norm, reduction):
    _, z_0, mask = batch(0)
    z = z_0.clone().requires_grad_()
    term = projection_term(z, z_0, mask, norm=norm, reduction=reduction)
    term.backward()
    assert term.item() == 0.0
    assert torch.equal(z.grad, torch.zeros_like(z))


@pytest.mark.parametrize(("norm", "reduction"), BOTH)
def test_no_response_token_gives_zero_with_a_gradient(norm, reduction):
    z, z_0, mask = batch(0)
    z.requires_grad_()
    term = projection_term(z, z_0, torch.zeros_like(mask), norm=norm, reduction=reduction)
    term.backward()
    assert term.item() == 0.0
    assert torch.equal(z.grad, torch.zeros_like(z))


@pytest.mark.parametrize("norm", NORMS)
def test_nan_outside_the_mask_stays_outside(norm):
    z, z_0, mask = batch(1)
    clean = projection_term(z, z_0, mask, norm=norm)
    z = z.masked_fill(~mask[..., None], math.nan).requires_grad_()
    term = projection_term(z, z_0, mask, norm=norm)
    term.backward()
    assert term.item() == clean.item()
    assert z.grad.isfinite().all()
    assert not z.grad[~mask].any()


def test_no_gradient_reaches_the_reference():
    z, z_0, mask = batch(2)
    z_0.requires_grad_()
    assert not projection_term(z, z_0, mask).requires_grad


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_given_denominators_add_parts_up_to_the_whole(norm, reduction):
    z, z_0, mask = batch(3, rows=4)
    whole = projection_term(z, z_0, mask, norm=norm, reduction=reduction)
    tokens, samples = mask.sum(), float(mask.any(1).sum())
    parts = [
        projection_term(z[i], z_0[i], mask[i], norm=norm, reduction=reduction, tokens=tokens, samples=samples)
        for i in (slice(0, 1), slice(1, 4))
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)


def test_a_float16_reference_is_read_as_float32():
    z, z_0, mask = batch(4)
    term = projection_term(z, z_0.half(), mask)
    assert term.dtype == torch.float32
    assert term.item() == pytest.approx(projection_term(z, z_0, mask).item(), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"z_0": torch.zeros(3, 5, 1)}, ValueError, "z and z_0"),
        ({"mask": torch.ones(3, 4).bool()}, ValueError, "mask"),
        ({"mask": torch.ones(3, 5)}, TypeError, "boolean"),
        ({"segments": torch.zeros(3)}, ValueError, "segments"),
        ({"scale": torch.ones(3)}, ValueError, "scale"),
        ({"norm": "l1"}, ValueError, "norm must be one of 'abs'"),
        ({"reduction": "sum"}, ValueError, "reduction must be one of 'mean'"),
    ],
)
def test_wrong_input(change, error, message):
    z, z_0, mask = batch(0)
    with pytest.raises(error, match=message) as caught:
        projection_term(**{"z": z, "z_0": z_0, "mask": mask, **change})
    assert "\n" not in str(caught.value)


def test_projection_and_its_gradient_are_those_of_a_dot_product():
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 3, 7, generator=draw).requires_grad_()
    copy = hidden.detach().clone().requires_grad_()
    direction, weight = torch.randn(7, generator=draw), torch.randn(2, 3, generator=draw)
    ours, expected = project(hidden, direction), (copy * direction).sum(-1)
    torch.testing.assert_close(ours, expected)
    (ours * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(hidden.grad, copy.grad)


def test_projection_is_float32_for_bfloat16_states_also_under_autocast():
    hidden = torch.randn(4, 512, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    direction = torch.nn.functional.normalize(torch.randn(512, generator=torch.Generator().manual_seed(1)), dim=-1)
    exact = hidden.detach().double() @ direction.double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = project(hidden, direction)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.double(), exact, atol=1e-5, rtol=1e-5)
    z.sum().backward()
    assert hidden.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("kept", [True, False], ids=["projection recomputed", "projection not recomputed"])
def test_a_projection_inside_a_checkpoint_may_be_left_out_of_its_recomputation(kept):
    draw = torch.Generator().manual_seed(0)
    layer, direction = torch.nn.Linear(4, 4), torch.randn(4, generator=draw)
    x, taken = torch.randn(3, 4, generator=draw), []

    def block(x):
        hidden = layer(x).tanh()
        if kept or not taken:
            taken.append(project(hidden, direction))
        return hidden

    output = checkpoint(block, x, use_reentrant=False)
    (output.sum() + taken[0].square().sum()).backward()
    gradient, layer.weight.grad = layer.weight.grad, None
    hidden = layer(x).tanh()
    (hidden.sum() + (hidden @ direction).square().sum()).backward()
    torch.testing.assert_close(gradient, layer.weight.grad)


def test_projection_wants_matching_widths():
    for direction in (torch.ones(3), torch.ones(1, 2)):
        with pytest.raises(ValueError, match="direction"):
            project(torch.ones(5, 2), direction)

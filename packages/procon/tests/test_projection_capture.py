from functools import partial

import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from torch import nn
from torch.utils.checkpoint import checkpoint

from procon.direction import RefusalDirections
from procon.projection_capture import ProjectionCapture, hidden_of

IDS = torch.arange(12).view(2, 6)


def directions(layers=(0, 1, 2), width=16, blocks=3):
    vectors = torch.randn(len(layers), width, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    return RefusalDirections(vectors=unit, layers=layers, model_name="tiny", model_hash="", blocks=blocks)


def model(**settings):
    return tiny_lm(20, layers=3, width=16, **settings)


def hooks(module):
    return sum(len(part._forward_hooks) for part in module.modules())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_captures_what_hidden_states_give(architecture):
    lm, chosen = model(architecture=architecture), directions((1, 0))
    capture = ProjectionCapture(lm, chosen)
    with torch.no_grad(), capture:
        states = lm(IDS, output_hidden_states=True).hidden_states
    expected = torch.stack([states[layer + 1] @ chosen[layer] for layer in (1, 0)], dim=-1)
    torch.testing.assert_close(capture.take(), expected)
    assert capture.layers == (1, 0)


def test_the_last_layer_is_read_before_the_final_norm():
    lm = model()
    last = directions((2,))
    normed = []
    lm.model.norm.register_forward_pre_hook(lambda module, arguments: normed.append(arguments[0]))
    capture = ProjectionCapture(lm, last)
    with torch.no_grad(), capture:
        lm(IDS)
    torch.testing.assert_close(capture.take()[..., 0], normed[0] @ last[2])


def test_the_gradient_is_that_of_the_projection():
    lm, chosen = model(), directions()
    parameters = list(lm.model.layers.parameters())
    capture = ProjectionCapture(lm, chosen)
    with capture:
        lm(IDS)
    ours = torch.autograd.grad(
        capture.take()[..., :2].square().sum(), parameters, materialize_grads=True, allow_unused=True
    )
    states = lm(IDS, output_hidden_states=True).hidden_states
    reference = sum((states[layer + 1] @ chosen[layer]).square().sum() for layer in (0, 1))
    expected = torch.autograd.grad(reference, parameters, materialize_grads=True, allow_unused=True)
    assert sum(bool(gradient.any()) for gradient in ours) > len(ours) // 2
    torch.testing.assert_close(ours, expected)


def test_a_second_pass_without_gradients_replaces_nothing():
    lm, chosen = model(), directions()
    capture = ProjectionCapture(lm, chosen)
    with capture:
        lm(IDS)
        with torch.no_grad():
            lm(IDS + 1)
    z = capture.take()
    assert z.requires_grad
    with torch.no_grad(), capture:
        lm(IDS)
        lm(IDS + 1)
    torch.testing.assert_close(z.detach(), capture.take())


def test_a_first_pass_without_gradients_gives_way_to_one_with():
    lm = model()
    capture = ProjectionCapture(lm, directions())
    with capture:
        with torch.no_grad():
            lm(IDS + 1)
        lm(IDS)
    z = capture.take()
    assert z.requires_grad
    with torch.no_grad(), capture:
        lm(IDS)
    torch.testing.assert_close(z.detach(), capture.take())


@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
def test_activation_checkpointing_changes_no_gradient(inside):
    gradients = []
    for checkpointing in (False, True):
        lm = model()
        if checkpointing:
            for layer in lm.model.layers:
                layer.gradient_checkpointing = True
                layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        lm.train()
        capture = ProjectionCapture(lm, directions())
        with capture:
            loss = lm(IDS, use_cache=False).logits.float().logsumexp(-1).mean()
            if inside:
                (loss + capture.take().square().mean()).backward()
        if not inside:
            (loss + capture.take().square().mean()).backward()
        gradients.append([parameter.grad for parameter in lm.parameters()])
    torch.testing.assert_close(*gradients)


def test_projections_that_nothing_can_be_trained_through_are_refused():
    lm = model()
    capture = ProjectionCapture(lm, directions())
    with capture, torch.no_grad():
        lm(IDS)
    with pytest.raises(RuntimeError, match="untrainable"):
        capture.take()


def test_blocks_below_the_first_trainable_one_are_constant():
    lm = model()
    lm.requires_grad_(False)
    lm.model.layers[1].requires_grad_(True)
    capture = ProjectionCapture(lm, directions())
    with capture:
        lm(IDS)
    z = capture.take()
    first, second = (
        torch.autograd.grad(
            z[..., i].sum(), list(lm.model.layers[1].parameters()), retain_graph=True, allow_unused=True
        )
        for i in (0, 1)
    )
    assert all(gradient is None or not gradient.any() for gradient in first)
    assert any(gradient.any() for gradient in second)
    below = ProjectionCapture(lm, directions((0,)))
    with below:
        lm(IDS)
    with pytest.raises(RuntimeError, match="untrainable"):
        below.take()


def test_a_model_without_trainable_parameters_needs_no_gradient():
    lm = model()
    lm.requires_grad_(False)
    capture = ProjectionCapture(lm, directions())
    with capture:
        lm(IDS)
    assert capture.take().shape == (2, 6, 3)


def test_hooks_are_there_only_inside_with():
    lm = model()
    capture = ProjectionCapture(lm, directions())
    assert hooks(lm) == 0
    with capture:
        assert hooks(lm) == 3
        with pytest.raises(RuntimeError, match="already armed"):
            capture.__enter__()
    assert hooks(lm) == 0
    with pytest.raises(IndexError), capture:
        lm(IDS + 100)
    assert hooks(lm) == 0
    with pytest.raises(RuntimeError, match="no projections"):
        capture.take()


def test_a_projection_is_taken_once():
    lm = model()
    capture = ProjectionCapture(lm, directions())
    with pytest.raises(RuntimeError, match="no projections"):
        capture.take()
    with torch.no_grad(), capture:
        lm(IDS)
    capture.take()
    with pytest.raises(RuntimeError, match="no projections"):
        capture.take()


def test_no_hidden_states_are_kept():
    lm = model()
    lm.requires_grad_(False)
    kept = []
    capture = ProjectionCapture(lm, directions())
    with capture:
        lm(IDS)
        kept = [z.untyped_storage().nbytes() for z in capture._seen]
    assert kept == [4 * IDS.numel()] * 3


class Tuple(nn.Linear):
    def forward(self, x):
        return super().forward(x), None


def test_blocks_may_return_a_tuple_but_must_return_a_tensor():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Tuple(4, 4), Tuple(4, 4)])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)[0]
            return x

    stack, x = Stack(), torch.ones(1, 2, 4)
    capture = ProjectionCapture(stack, directions((1,), width=4, blocks=2))
    with capture:
        output = stack(x)
    torch.testing.assert_close(capture.take()[..., 0], output @ directions((1,), width=4, blocks=2)[1])
    for output in ({}, (None,), ()):
        with pytest.raises(TypeError, match="expected a tensor"):
            hidden_of(output)


def test_directions_of_other_models_are_refused():
    with pytest.raises(ValueError, match="no block 3"):
        ProjectionCapture(model(), directions((0, 3), blocks=4))
    capture = ProjectionCapture(model(), directions(width=8))
    with pytest.raises(ValueError, match="directions of this model"), capture:
        capture._model(IDS)

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from aisec_common.torch.hooks import capture, edit  # noqa: E402
from torch import Tensor, nn  # noqa: E402


class Block(nn.Module):
    """Returns a tuple, as attention layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return self.linear(x), "cache"


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.last_note = ""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x, self.last_note = block(x)
        return x


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


X = torch.arange(6.0).view(2, 3)


def unhooked(model: nn.Module) -> bool:
    return not any(module._forward_hooks for module in model.modules())


def test_capture_equals_the_layers_applied_by_hand(model: Model) -> None:
    with capture(model, ["blocks.0", "blocks.1.linear"]) as seen:
        model(X)
    first = model.blocks[0].linear(X)
    torch.testing.assert_close(seen["blocks.0"], first)
    torch.testing.assert_close(seen["blocks.1.linear"], model.blocks[1].linear(first))
    assert not seen["blocks.0"].requires_grad
    assert unhooked(model)


def test_the_latest_pass_counts_and_nothing_is_seen_outside(model: Model) -> None:
    with capture(model, "blocks.0") as seen:
        assert seen == {}
        model(X)
        model(2 * X)
    model(3 * X)
    torch.testing.assert_close(seen["blocks.0"], model.blocks[0].linear(2 * X).detach())


def test_without_detach_gradients_reach_the_activation(model: Model) -> None:
    with capture(model, "blocks.1", detach=False) as seen:
        output = model(X)
    (gradient,) = torch.autograd.grad(output.sum(), seen["blocks.1"])
    torch.testing.assert_close(gradient, model.blocks[2].linear.weight.sum(0).expand(2, 3))


def test_device_moves_what_is_kept(model: Model) -> None:
    with capture(model, "blocks.0", device="meta") as seen:
        model(X)
    assert seen["blocks.0"].device.type == "meta"


def test_edit_changes_the_run_and_passes_the_rest_of_a_tuple_on(model: Model) -> None:
    with edit(model, {"blocks.1": lambda h: h + 1}):
        edited = model(X)
        assert model.last_note == "cache"
    by_hand = model.blocks[2].linear(model.blocks[1].linear(model.blocks[0].linear(X)) + 1)
    torch.testing.assert_close(edited, by_hand)
    assert not torch.allclose(model(X), edited)
    assert unhooked(model)


def test_nesting_capture_inside_sees_the_edit_and_around_does_not(model: Model) -> None:
    zero = {"blocks.0": torch.zeros_like}
    with capture(model, "blocks.0") as around, edit(model, zero), capture(model, "blocks.0") as inside:
        model(X)
    assert not inside["blocks.0"].any()
    assert around["blocks.0"].any()
    plus, twice = edit(model, {"blocks.0": lambda h: h + 1}), edit(model, {"blocks.0": lambda h: 2 * h})
    with plus, twice, capture(model, "blocks.0") as seen:
        model(X)
    torch.testing.assert_close(seen["blocks.0"], 2 * (model.blocks[0].linear(X) + 1).detach())


def test_hooks_go_when_the_run_fails(model: Model) -> None:
    def fail(h: Tensor) -> Tensor:
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"), edit(model, {"blocks.0": fail}), capture(model, "blocks.1"):
        model(X)
    assert unhooked(model)


def test_unknown_layers_name_the_near_ones_and_leave_no_hook(model: Model) -> None:
    with (
        pytest.raises(ValueError, match=r"no layer 'block\.1'; near: 'blocks\.1'"),
        capture(model, ["blocks.0", "block.1"]),
    ):
        pass
    with pytest.raises(ValueError, match=r"no layer 'linear'; near: 'blocks\.0\.linear'"), edit(model, {"linear": abs}):
        pass
    with pytest.raises(ValueError, match=r"no layer 'zzz'; see model\.named_modules"), capture(model, "zzz"):
        pass
    with pytest.raises(ValueError, match="layers is empty"), capture(model, []):
        pass
    assert unhooked(model)


def test_edits_must_keep_kind_and_shape(model: Model) -> None:
    shorter, nothing = edit(model, {"blocks.0": lambda h: h[:1]}), edit(model, {"blocks.0": lambda h: None})
    with pytest.raises(ValueError, match=r"must keep the shape \(2, 3\), got \(1, 3\)"), shorter:
        model(X)
    with pytest.raises(TypeError, match="must return a tensor, got NoneType"), nothing:
        model(X)
    wrong = nn.Sequential(nn.Identity(), Text())
    with pytest.raises(TypeError, match="layer '1' returns str"), capture(wrong, "1"):
        wrong(X)


class Text(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "no tensor"


def test_real_transformer_blocks_in_generation() -> None:
    pytest.importorskip("transformers")
    from aisec_common.torch.hf_tiny_lm import tiny_lm

    for architecture, layer in (("llama", "model.layers.1"), ("gpt2", "transformer.h.1")):
        model = tiny_lm(30, architecture=architecture, width=16, heads=2)
        prompt = torch.tensor([[1, 2, 3]])
        with torch.no_grad():
            hidden = model(prompt, output_hidden_states=True).hidden_states
            with capture(model, layer.replace("1", "0")) as seen:
                model(prompt)
        torch.testing.assert_close(seen[layer.replace("1", "0")], hidden[1])
        with edit(model, {layer: torch.zeros_like}), capture(model, layer) as seen:
            model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=3, do_sample=False)
        assert seen[layer].shape == (1, 1, 16), "with a cache each later pass runs one token"
        assert not seen[layer].any()


class Named(nn.Module):
    """Calls its parts with keywords, as transformer blocks call attention."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.add = Add()

    def forward(self, x: Tensor) -> Tensor:
        return self.add(hidden=self.linear(x), other=x)


class Add(nn.Module):
    def forward(self, hidden: Tensor, other: Tensor) -> Tensor:
        return hidden + other


def test_input_of_a_layer_is_its_first_argument_positional_or_named(model: Model) -> None:
    with capture(model, ["blocks.1:input", "blocks.0"]) as seen:
        model(X)
    torch.testing.assert_close(seen["blocks.1:input"], seen["blocks.0"])
    named = Named()
    with edit(named, {"add:input": lambda h: 2 * h}), capture(named, "add:input") as seen:
        output = named(X)
    torch.testing.assert_close(seen["add:input"], 2 * named.linear(X).detach())
    torch.testing.assert_close(output, 2 * named.linear(X) + X)
    assert not any(module._forward_pre_hooks for module in named.modules())


def test_an_edited_input_must_be_a_tensor_of_the_same_shape(model: Model) -> None:
    with (
        pytest.raises(ValueError, match=r"'blocks\.0:input' must keep the shape"),
        edit(model, {"blocks.0:input": lambda h: h[:1]}),
    ):
        model(X)
    with pytest.raises(ValueError, match=r"no layer 'block\.1'; near"), capture(model, "block.1:input"):
        pass
    wrong = nn.Sequential(Text(), Text())
    with pytest.raises(TypeError, match="layer '1:input' gets str first"), capture(wrong, "1:input"):
        wrong(X)

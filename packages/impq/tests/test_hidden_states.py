import pytest
import torch
from tiny_models import ARCHITECTURES, batches, model_of
from torch import nn

from impq.blocks import find_blocks
from impq.hidden_states import BlockList, logits_of
from impq.runner import evaluation


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parts_are_the_whole(architecture):
    model, part = model_of(architecture), batches(architecture)[0]
    name, entries = find_blocks(model)
    blocks = BlockList(model, name)
    with evaluation(model):
        vocabulary, _ = blocks.check(part.inputs)
        hidden, calls = blocks.arguments(part.inputs)
        for entry, call in zip(entries, calls, strict=True):
            args, kwargs = call.with_hidden(hidden)
            hidden = blocks.hidden_of(entry(*args, **kwargs))
        whole = logits_of(model(**part.inputs))
        assert vocabulary == whole.shape[-1]
        torch.testing.assert_close(blocks.head(part.inputs, hidden), whole, rtol=0, atol=0)
    assert model.get_submodule(name) is entries


def test_sliding_and_full_attention_get_masks_of_their_own():
    model, part = model_of("gemma2", 2), batches()[0]
    blocks = BlockList(model, "model.layers")
    with evaluation(model):
        blocks.check(part.inputs)
        _, calls = blocks.arguments(part.inputs)
    assert not torch.equal(calls[0].kwargs["attention_mask"], calls[1].kwargs["attention_mask"])


class Chain(nn.Module):
    """Two blocks with a fault."""

    def __init__(self, fault):
        super().__init__()
        self.fault, self.layers = fault, nn.ModuleList([Link(fault), Link(fault)])

    def forward(self, x):
        first = x[..., None].float()
        carried = torch.zeros(())
        for layer in self.layers[:1] if self.fault == "skip" else self.layers:
            if self.fault == "carry":
                x, carried = layer(first, carried), carried + 1
                first, carried = x, x.sum()
            else:
                first = layer(first, None)
        return first


class Link(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.fault, self.linear = fault, nn.Linear(1, 1)

    def forward(self, x, carried):
        if self.fault == "in place":
            x += 1
        if self.fault == "none":
            return None
        return x + self.linear(x)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("in place", "layers.0 changes its input in place"),
        ("carry", "depends on earlier ones by more than hidden states"),
        ("skip", "one forward ran 1 of the 2 blocks of layers"),
        ("none", "must be given hidden states first"),
    ],
)
def test_models_that_cannot_be_taken_apart(fault, message):
    model = Chain(fault)
    entries = model.layers
    with pytest.raises(ValueError, match=message), evaluation(model):
        BlockList(model, "layers").check({"x": torch.ones(1, 3)})
    assert model.layers is entries


class Skip(nn.Module):
    """A head that also reads the first block's output."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    def forward(self, x):
        first = self.layers[0](x)
        return self.layers[1](first) + first


def test_head_that_reads_other_blocks():
    model = Skip()
    with pytest.raises(ValueError, match="its logits depend on more than the last block"), evaluation(model):
        BlockList(model, "layers").check({"x": torch.ones(1, 3, 2)})


def test_not_a_list():
    with pytest.raises(ValueError, match="not an nn"):
        BlockList(nn.Sequential(nn.Linear(2, 2)), "0")


def test_logits_need_three_axes():
    with pytest.raises(ValueError, match=r"logits must be \[rows, tokens, vocabulary\]"):
        logits_of(torch.zeros(2, 3))

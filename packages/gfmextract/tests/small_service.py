"""A victim small enough to train on in a test: its vectors are a fixed mix of an ego graph's features."""

import torch

from gfmextract.service import EmbeddingService
from gfmextract.text_graph import TextGraph


class MixVictim:
    """z = W (x_root + mean x); the texts are the names of classes, which lie on W's columns."""

    def __init__(self, width=6, features=4):
        rng = torch.Generator().manual_seed(7)
        self.weight = torch.randn(width, features, generator=rng)

    def encode_graph(self, batch):
        size = batch.ptr.diff()
        mean = torch.zeros(len(size), batch.x.shape[1]).index_add_(0, batch.batch, batch.x) / size.unsqueeze(1)
        return (batch.x[batch.root_n_index] + mean) @ self.weight.T

    def encode_text(self, texts):
        return torch.stack([self.weight[:, int(text.split()[-1])] for text in texts])


class SealedVictim(MixVictim):
    """Whoever looks at its weights is told off."""

    def parameters(self):
        raise AssertionError("nobody may read the victim's parameters")

    state_dict = named_parameters = modules = parameters


def classed_graph(nodes=80, seed=0, name="classed"):
    """Three classes of clustered features; the text of a node names its class."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(nodes) % 3
    x = torch.randn(nodes, 4, generator=rng) * 0.5 + 2.0 * torch.eye(4)[y]
    same = torch.rand(nodes, nodes, generator=rng) < torch.where(y[:, None] == y, 0.1, 0.01)
    return TextGraph(
        name=name,
        x=x,
        edge_index=same.triu(1).nonzero().T,
        texts=[f"text of {kind}" for kind in y.tolist()],
        y=y,
        classes=("0", "1", "2"),
        template="class {}",
    )


def service(victim=None, **settings):
    return EmbeddingService(victim or MixVictim(), **settings)

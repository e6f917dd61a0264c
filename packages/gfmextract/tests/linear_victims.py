"""A victim that takes no training: words with fixed vectors, and one linear map of root and mean features."""

import torch
from torch import nn
from torch.nn.functional import normalize

from gfmextract.pyg_ego import ego_graphs
from gfmextract.text_graph import TextGraph

WIDTH, WORDS, RANK = 32, 120, 6


def word_vectors(texts):
    """Unit mean of the vectors of a text's words, which only depend on the word."""
    table = torch.randn(WORDS, WIDTH, generator=torch.Generator().manual_seed(0))
    return normalize(torch.stack([table[[int(word[1:]) for word in text.split()]].mean(0) for text in texts]))


class LinearVictim(nn.Module):
    """encode_graph = unit([mean of x ; mean of pe ; x of the root] W), W of rank 6 drawn from a seed."""

    def __init__(self, seed=0, *, unit=True, width=WIDTH):
        super().__init__()
        self.map = nn.Linear(2 * WIDTH + 8, width, bias=False)
        rng = torch.Generator().manual_seed(seed)
        low = torch.randn(width, RANK, generator=rng) @ torch.randn(RANK, 2 * WIDTH + 8, generator=rng)
        self.map.weight.data = low / (RANK * WIDTH) ** 0.5
        self.unit = unit
        self.asked = 0

    def encode_graph(self, batch):
        self.asked += len(batch.ptr) - 1
        read = torch.cat([batch.x, batch.pe], 1)
        pooled = torch.zeros(len(batch.ptr) - 1, read.shape[1]).index_add_(0, batch.batch, read)
        pooled = pooled / batch.ptr.diff().unsqueeze(1)
        vectors = self.map(torch.cat([pooled, batch.x[batch.root_n_index]], 1))
        return normalize(vectors) if self.unit else vectors

    def encode_text(self, texts):
        return word_vectors(texts)


def worded_graph(nodes=60, seed=0, length=8):
    """A random graph whose texts are words, and whose features are their vectors."""
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.randint(WORDS, (nodes, length), generator=rng).tolist()
    texts = [" ".join(f"w{i}" for i in line) for line in drawn]
    return TextGraph(
        name=f"worded {seed}",
        x=word_vectors(texts),
        edge_index=torch.randint(nodes, (2, 2 * nodes), generator=rng),
        texts=texts,
        y=torch.arange(nodes) % 3,
        classes=("w0 w1", "w2 w3", "w4 w5"),
        template="{}",
    )


def egos_of(graph):
    return ego_graphs(graph, torch.arange(len(graph)))


def renumbered(egos, seed):
    """The same ego graphs with every node but the root, and all edges, in another order."""
    from gfmextract.pyg_ego import EgoGraphs

    rng = torch.Generator().manual_seed(seed)
    made = []
    for data in egos:
        order = torch.cat([torch.tensor([0]), 1 + torch.randperm(len(data.x) - 1, generator=rng)])
        place = order.argsort()
        edges = place[data.edge_index][:, torch.randperm(data.edge_index.shape[1], generator=rng)]
        data.x, data.node_id, data.edge_index = data.x[order], data.node_id[order], edges
        made.append(data)
    return EgoGraphs.of(made)

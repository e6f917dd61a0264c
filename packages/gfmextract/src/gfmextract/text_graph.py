"""A text-attributed graph: nodes that carry a text, edges between them, classes that have a description."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class TextGraph:
    """An undirected graph whose nodes carry texts.

    Args:
        name: how tables call it.
        x: [N, F] feature vectors of the nodes, usually sentence vectors of their texts.
        edge_index: [2, E] edges; directions, doubles and loops are dropped.
        texts: [N] one text a node.
        y: [N] class of each node, 0..C-1.
        classes: [C] descriptions of the classes, as prompts put them.
        template: prompt of a class, with `{}` where its description goes.

    Raises:
        ValueError: for shapes that do not agree, NaN features, an empty edge set, fewer than two classes, a node or a
            class that does not exist; the message names the row.

    >>> graph = TextGraph(
    ...     name="pair", x=torch.eye(2), edge_index=torch.tensor([[0], [1]]), texts=("a", "b"),
    ...     y=torch.tensor([0, 1]), classes=("first", "second"),
    ... )
    >>> graph.prompts
    ['this text is about first', 'this text is about second']
    """

    name: str
    x: Tensor
    edge_index: Tensor
    texts: Sequence[str]
    y: Tensor
    classes: Sequence[str]
    template: str = "this text is about {}"

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or not len(self.x):
            raise ValueError(f"x must be [nodes, features], got {list(self.x.shape)}")
        nodes = len(self.x)
        if not torch.isfinite(self.x).all():
            row = int((~torch.isfinite(self.x)).any(1).nonzero()[0])
            raise ValueError(f"x of node {row} holds NaN or infinity: encode its text again")
        if len(self.texts) != nodes or self.y.shape != (nodes,):
            raise ValueError(f"texts and y must have one entry for each of {nodes} nodes of x")
        if self.edge_index.ndim != 2 or len(self.edge_index) != 2 or not self.edge_index.numel():
            raise ValueError(f"edge_index must be [2, edges] with at least one edge, got {list(self.edge_index.shape)}")
        if self.edge_index.min() < 0 or self.edge_index.max() >= nodes:
            raise ValueError(f"edge_index names node {int(self.edge_index.max())}, x has nodes 0 to {nodes - 1}")
        if len(self.classes) < 2:
            raise ValueError(f"classes must name at least two, got {list(self.classes)}: zero-shot has nothing to tell")
        if self.y.min() < 0 or self.y.max() >= len(self.classes):
            row = int(((self.y < 0) | (self.y >= len(self.classes))).nonzero()[0])
            raise ValueError(f"y of node {row} is {int(self.y[row])}, classes go from 0 to {len(self.classes) - 1}")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def prompts(self) -> list[str]:
        """What the text encoder is asked for, class by class."""
        return [self.template.format(name) for name in self.classes]

    @cached_property
    def hash(self) -> str:
        """SHA-256 of everything in it, its name included."""
        told = (self.name, list(self.texts), list(self.classes), self.template, list(self.x.shape))
        digest = hashlib.sha256(repr(told).encode())
        for tensor in (self.x.double(), self.edge_index, self.y):
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def neighbours(self) -> tuple[Tensor, Tensor]:
        """The graph by rows: `indices[start[v]:start[v + 1]]` are the neighbours of v, ascending, without v itself."""
        source, target = self.edge_index
        keep = source != target
        both = torch.cat([self.edge_index[:, keep], self.edge_index.flip(0)[:, keep]], 1)
        keys = torch.unique(both[0] * len(self) + both[1])
        start = torch.zeros(len(self) + 1, dtype=torch.int64)
        start[1:] = torch.bincount(keys // len(self), minlength=len(self)).cumsum(0)
        return start, keys % len(self)

    def subgraph(self, nodes: Tensor) -> TextGraph:
        """The graph induced on some nodes, which are numbered in the order given.

        Raises:
            ValueError: when no edge is left.
        """
        place = torch.full((len(self),), -1, dtype=torch.int64)
        place[nodes] = torch.arange(len(nodes))
        edges = place[self.edge_index]
        return replace(
            self,
            x=self.x[nodes],
            edge_index=edges[:, (edges >= 0).all(0)],
            texts=[self.texts[node] for node in nodes.tolist()],
            y=self.y[nodes],
        )

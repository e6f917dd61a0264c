"""Text-attributed graphs drawn from a seed: words with a meaning, topics, and communities that talk about them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from aisec_common.seeding import torch_rng
from torch import Tensor

from gfmextract.hf_text_tower import TextTower, tiny_text_tower
from gfmextract.pyg_ego import EgoGraphs
from gfmextract.text_graph import TextGraph

WORDS, LATENT = 400, 12
CLASSES, TOPIC = 4, 20
"""Classes of a domain, and words of a class."""
LENGTH, RANDOM = 12, 0.6
"""Words of a node's text, and the chance that one of them is any word at all."""
NEIGHBOURS, CONTRAST = 6, 10.0
"""Expected neighbours of a node, and how much likelier an edge within a class is than one between two."""
SUMMARY = 6
"""Words of a summary about the root, and as many about those around it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """A vocabulary whose words mean something, and a text tower that knows what.

    Args:
        seed: what it was drawn from.
        words: [W] the vocabulary.
        latents: [W, k] what each word means.
        tower: the frozen text encoder.

    >>> world = World.of(0)
    >>> first, second = world.domain(1, nodes=40, copies=2)
    >>> first.classes == second.classes, first.texts == second.texts, list(first.x.shape)
    (True, False, [40, 64])

    Source: our own choice; the graphs are stochastic block models.
    """

    seed: int
    words: tuple[str, ...]
    latents: Tensor
    tower: TextTower

    @classmethod
    def of(cls, seed: int) -> World:
        """The world of a seed: 400 words with latents drawn from a normal law in 12 dimensions."""
        words = tuple(f"word{i:03d}" for i in range(WORDS))
        latents = torch.randn(WORDS, LATENT, generator=torch_rng(seed, "latents"))
        return cls(seed=seed, words=words, latents=latents, tower=tiny_text_tower(words, latents, seed))

    def domain(self, seed: int, nodes: int = 240, copies: int = 1) -> list[TextGraph]:
        """Graphs of one domain: they share classes and words; nodes, texts and edges are drawn anew for each.

        A class is the 20 words nearest to a random centre. A node's text has 12 words, 60 % of them any word, the
        others of its class. Edges: probability p within a class, p / 10 between two, about 6 neighbours a node.

        Args:
            seed: which domain.
            nodes: of each graph; the classes take turns.
            copies: how many graphs.

        Raises:
            ValueError: for fewer than 8 nodes or no copy.
        """
        return self._domain(("domain", seed), f"domain {seed}", nodes, copies)

    def pretraining(self, seed: int, domains: int = 60, nodes: int = 24) -> list[TextGraph]:
        """One small graph of each of many domains, none of which `domain` gives.

        Args:
            seed: which of them.
            domains: how many.
            nodes: of each graph.

        Raises:
            ValueError: for fewer than 8 nodes or no domain.
        """
        if domains < 1:
            raise ValueError(f"domains must be at least 1, got {domains}")
        each = [self._domain(("pretraining", seed, i), f"pretraining {i}", nodes, 1) for i in range(domains)]
        return [graph for graphs in each for graph in graphs]

    def _domain(self, purpose: tuple[str | int, ...], name: str, nodes: int, copies: int) -> list[TextGraph]:
        if nodes < 2 * CLASSES or copies < 1:
            raise ValueError(f"nodes must be at least {2 * CLASSES} and copies at least 1, got {nodes} and {copies}")
        centres = torch.randn(CLASSES, LATENT, generator=torch_rng(self.seed, *purpose, "centres"))
        topics = torch.cdist(centres, self.latents).argsort(1)[:, :TOPIC]
        classes = tuple(" ".join(self.words[word] for word in topic) for topic in topics.tolist())
        graphs = []
        for copy in range(copies):
            rng = torch_rng(self.seed, *purpose, "copy", copy)
            y = torch.arange(nodes) % CLASSES
            own = topics[y].gather(1, torch.randint(TOPIC, (nodes, LENGTH), generator=rng))
            any_word = torch.randint(len(self.words), (nodes, LENGTH), generator=rng)
            chosen = torch.where(torch.rand(nodes, LENGTH, generator=rng) < RANDOM, any_word, own)
            texts = [" ".join(self.words[word] for word in row) for row in chosen.tolist()]
            graphs.append(
                TextGraph(
                    name=f"{name}{'abcdefgh'[copy] if copies > 1 else ''}",
                    x=self.tower.encode(texts),
                    edge_index=_block_model(y, rng),
                    texts=texts,
                    y=y,
                    classes=classes,
                    template="about {}",
                )
            )
        return graphs


def summaries(graph: TextGraph, egos: EgoGraphs, seed: int = 0) -> list[str]:
    """What a summary of each ego graph would tell: 6 words of its root's class, 6 of the class most of it is in.

    Args:
        graph: of a `World`, whose class descriptions are their words.
        egos: G ego graphs of it.
        seed: of the choice of words.

    Returns:
        [G] texts.

    Source: our own choice, in place of the summaries that a language model writes for GraphCLIP.
    """
    topics = [description.split() for description in graph.classes]
    root = graph.y[egos.roots]
    owner = torch.arange(len(egos)).repeat_interleave(egos.start.diff())
    count = torch.zeros(len(egos), len(topics))
    count.index_put_((owner, graph.y[egos.nodes]), torch.ones(()), accumulate=True)
    count[torch.arange(len(egos)), root] += 0.5  # the root's class where two are even
    rng = torch_rng(seed, "summaries", graph.name)
    drawn = [torch.rand(len(egos), TOPIC, generator=rng).argsort(1)[:, :SUMMARY].tolist() for _ in range(2)]
    told = zip(root.tolist(), drawn[0], count.argmax(1).tolist(), drawn[1], strict=True)
    return [
        " ".join([*(topics[a][word] for word in some), *(topics[b][word] for word in others)])
        for a, some, b, others in told
    ]


def _block_model(y: Tensor, rng: torch.Generator) -> Tensor:
    """[2, E] edges with the wanted contrast and number of neighbours."""
    first, second = torch.triu_indices(len(y), len(y), 1)
    same = y[first] == y[second]
    weight = torch.where(same, CONTRAST, 1.0)
    chance = weight * (NEIGHBOURS * len(y) / 2 / float(weight.sum()))
    return torch.stack([first, second])[:, torch.rand(len(chance), generator=rng) < chance]

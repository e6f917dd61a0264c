"""What embedding regression is measured against: no training, no graph, less of an answer, or no answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gfmextract.attack import Attack, Copy, Gathered, GraphCopy, TextEncoder
from gfmextract.cost import Cost
from gfmextract.pyg_ego import EgoGraphs
from gfmextract.surrogate import fit_surrogate, fresh_surrogate
from gfmextract.zero_shot import class_scores

Summaries = Callable[..., list[str]]
"""Of a text graph and Q ego graphs of it: Q texts."""
TEMPERATURE = 0.07
"""Divides cosines before a softmax, as in contrastive pretraining at its start."""


class Untrained(Attack):
    """B0: the attacker's encoder with its first weights; it asks for nothing.

    >>> Untrained(backbone="sage").name
    'B0 untrained'

    Source: ours.
    """

    name = "B0 untrained"
    levels = ()

    def copy(self, gathered: Gathered) -> Copy:
        """The encoder as it is made."""
        return GraphCopy(encoder=fresh_surrogate(gathered.config, gathered.egos, gathered.dimension))


@dataclass(frozen=True, kw_only=True, eq=False)
class TextCopy:
    """A copy that reads the root's text and nothing else."""

    text: TextEncoder

    @property
    def cost(self) -> Cost:
        """Nothing was trained."""
        return Cost(seconds=0.0, flops=0.0)

    def vectors(self, egos: EgoGraphs, texts: Sequence[str]) -> Tensor:
        """[G, d] vectors of the texts."""
        return self.text(list(texts))


class TextOnly(Attack):
    """B1: the public text encoder's vector of the root's text, no graph; it asks for nothing.

    Source: arXiv 2511.11912 aligns graphs to texts, so a victim that does not beat this uses no graph; the baseline is
    ours.
    """

    name = "B1 text only"
    levels = ()

    def copy(self, gathered: Gathered) -> Copy:
        """The text encoder."""
        return TextCopy(text=_text_of(gathered, self.name))


class HardLabels(Attack):
    """B2: distillation of top-1 labels, the cross-entropy of softmax(cos(A(g), T(p_c)) / 0.07) with the label.

    A service that returns scores or embeddings is asked all the same, and only its top class is used.

    Source: model stealing with labels; temperature and encoder are ours.
    """

    name = "B2 hard labels"
    levels = ("embedding", "scores", "label")

    def copy(self, gathered: Gathered) -> Copy:
        """An encoder trained on the classes of the answers."""
        classes = _classes(gathered, self.name)
        labels = _scores(gathered, classes).argmax(1)
        return _distilled(gathered, classes, functional.one_hot(labels, len(classes)).float())


class SoftLabels(Attack):
    """B3: distillation of class scores, the KL divergence of softmax(cos(A(g), T(p_c)) / 0.07) from that of scores.

    Of a service that returns embeddings, the scores are their cosines with the prompts.

    Source: knowledge distillation (Hinton et al., 2015); temperature and encoder are ours.
    """

    name = "B3 soft labels"
    levels = ("embedding", "scores")

    def copy(self, gathered: Gathered) -> Copy:
        """An encoder trained on the class scores of the answers."""
        classes = _classes(gathered, self.name)
        return _distilled(gathered, classes, (_scores(gathered, classes) / TEMPERATURE).softmax(1))


class OwnPairs(Attack):
    """B4: contrastive training from scratch on as many own (ego graph, text) pairs as others ask queries.

    Symmetric InfoNCE over a batch, at a fixed temperature of 0.07: what the attacker could do without the service.

    Args:
        summaries: texts of a graph's ego graphs, such as `synthetic.summaries`; by default the texts of their roots.
        config: fields of `ExtractionConfig` by name.

    Source: GraphCLIP's pretraining (arXiv 2410.10329) without its augmentations; as a baseline ours.
    """

    name = "B4 own pairs"
    levels = ()

    def __init__(self, *, summaries: Summaries | None = None, **config: Any) -> None:
        super().__init__(**config)
        self.summaries = summaries

    def copy(self, gathered: Gathered) -> Copy:
        """An encoder trained on the pairs."""
        row, egos = gathered.row, gathered.egos
        roots = [row.queried.texts[node] for node in egos.roots.tolist()]
        told = roots if self.summaries is None else self.summaries(row.queried, egos)
        paired = functional.normalize(_text_of(gathered, self.name)(told).detach().float().clone(), dim=1)
        surrogate = fresh_surrogate(gathered.config, egos, paired.shape[1])
        device = surrogate.scale.device

        def loss(vectors: Tensor, rows: Tensor) -> Tensor:
            logits = functional.normalize(vectors, dim=1) @ paired[rows].to(device).T / TEMPERATURE
            own = torch.arange(len(rows), device=device)
            return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2

        return GraphCopy(encoder=fit_surrogate(surrogate, egos, loss, show=gathered.show))


def _distilled(gathered: Gathered, classes: Tensor, wanted: Tensor) -> Copy:
    """An encoder whose class probabilities come near `wanted` [Q, C]; the loss is 0 at its best."""
    surrogate = fresh_surrogate(gathered.config, gathered.egos, classes.shape[1])
    device = surrogate.scale.device
    prompts, wanted = functional.normalize(classes, dim=1).to(device), wanted.to(device)

    def loss(vectors: Tensor, rows: Tensor) -> Tensor:
        told = (functional.normalize(vectors, dim=1) @ prompts.T / TEMPERATURE).log_softmax(1)
        return functional.kl_div(told, wanted[rows.to(device)], reduction="batchmean")

    return GraphCopy(encoder=fit_surrogate(surrogate, gathered.egos, loss, show=gathered.show))


def _classes(gathered: Gathered, name: str) -> Tensor:
    """[C, d] vectors of the prompts of the queried graph, fit for training."""
    return _text_of(gathered, name)(gathered.row.queried.prompts).detach().cpu().float().clone()


def _scores(gathered: Gathered, classes: Tensor) -> Tensor:
    """[Q, C] what the answers say of each class: scores, cosines of embeddings, or 1 for the label and 0."""
    assert gathered.answers is not None
    if gathered.level == "embedding":
        return class_scores(gathered.answers.float(), classes)
    of_service = int(gathered.answers.max()) + 1 if gathered.level == "label" else gathered.answers.shape[1]
    graph = gathered.row.queried
    if of_service > len(classes) or (gathered.level == "scores" and of_service < len(classes)):
        raise ValueError(f"service has {of_service} classes, graph {graph.name!r} {len(classes)}: pass its prompts")
    if gathered.level == "label":
        return functional.one_hot(gathered.answers, len(classes)).float()
    return gathered.answers.float()


def _text_of(gathered: Gathered, name: str) -> TextEncoder:
    if gathered.text is None:
        raise ValueError(f"text is None, but {name} needs the text encoder: pass victim.encode_text")
    return gathered.text

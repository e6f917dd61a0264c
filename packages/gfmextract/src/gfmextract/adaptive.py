"""What attackers do who know the defences: moves around a service, and between its answers and the training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from aisec_common.seeding import derived_seed, torch_rng
from torch import Tensor

from gfmextract.pretraining import info_nce
from gfmextract.pyg_ego import EgoGraphs, random_walk_pe
from gfmextract.surrogate import Surrogate, fit_surrogate

if TYPE_CHECKING:
    from gfmextract.service import EmbeddingService

TEMPERATURE = 0.07
"""Of the contrastive loss that fine-tuning uses."""


def averaged_answers(
    service: EmbeddingService,
    egos: EgoGraphs,
    *,
    repeats: int,
    jitter: float = 0.0,
    texts: Sequence[str] | None = None,
    client: str = "0",
    seed: int = 0,
) -> Tensor:
    """Asks about each ego graph several times and takes the mean, which removes noise that differs between repeats.

    Against keyed noise a jitter is needed: features moved by jitter RMS(x) xi make another subgraph of every repeat,
    with another noise and nearly the same embedding.

    Args:
        service: that is asked repeats times G queries.
        egos: G ego graphs.
        repeats: at least 1.
        jitter: relative size of what is added to the features of each repeat.
        texts: [G] texts of the roots.
        client: as whom to ask.
        seed: of the jitter.

    Returns:
        [G, d].

    Raises:
        ValueError: for no repeat or a negative jitter; `BudgetExceeded` as the service does.

    Source: the remedy against randomised answers of any kind; the jitter is ours.
    """
    if repeats < 1 or jitter < 0:
        raise ValueError(f"repeats must be at least 1 and jitter at least 0, got {repeats} and {jitter}")
    rng = torch_rng(seed, "jitter")
    size = jitter * egos.x.square().mean().sqrt()
    total: Tensor | None = None
    for _ in range(repeats):
        moved = replace(egos, x=egos.x + size * torch.randn(egos.x.shape, generator=rng)) if jitter else egos
        answers = service.answer(moved, texts=texts, client=client).double()
        total = answers if total is None else total + answers
    assert total is not None
    return (total / repeats).float()


def further_queries(egos: EgoGraphs, *, factor: int, drop: float = 0.3, seed: int = 0) -> tuple[EgoGraphs, Tensor]:
    """More queries than there are nodes: the ego graphs and variants of them that lack some nodes.

    Args:
        egos: G ego graphs.
        factor: how many times G; the first G are the ego graphs themselves.
        drop: chance that a variant lacks a node, the root apart.
        seed: of what is dropped.

    Returns:
        [factor G] ego graphs, and for each [factor G] the place of the one it comes from.

    Raises:
        ValueError: for a factor below 1 or a drop outside 0..1.

    Source: ours; a client may submit any subgraph.
    """
    if factor < 1 or not 0 <= drop < 1:
        raise ValueError(f"factor must be at least 1 and drop in [0, 1), got {factor} and {drop}")
    origin = torch.arange(len(egos)).repeat(factor)
    many = egos[origin]
    keep = torch.rand(len(many.x), generator=torch_rng(seed, "dropped nodes")) >= drop
    keep[: len(egos.x)] = True
    keep[many.start[:-1]] = True
    return _without(many, keep), origin


def pca_denoised(answers: Tensor, *, rank: int | None = None) -> Tensor:
    """Answers without the directions in which they vary least, where noise is most of what there is.

    Z' = mean + U_r S_r V_r^T of the centred answers

    Args:
        answers: [Q, d].
        rank: r; by default the number of singular values above the optimal threshold for noise of unknown size,
            (0.56 b^3 - 0.95 b^2 + 1.82 b + 1.43) median(S) with b the ratio of the sides, and at least 1.

    Returns:
        [Q, d].

    Raises:
        ValueError: for a rank below 1, or answers that are not [Q >= 2, d].

    Source: threshold of Gavish and Donoho (IEEE Trans. Inf. Theory 2014).
    """
    if answers.ndim != 2 or len(answers) < 2:
        raise ValueError(f"answers must be [Q, d] with at least two rows, got {list(answers.shape)}")
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    mean = answers.double().mean(0)
    u, s, v = torch.linalg.svd(answers.double() - mean, full_matrices=False)
    if rank is None:
        ratio = min(answers.shape) / max(answers.shape)
        threshold = (0.56 * ratio**3 - 0.95 * ratio**2 + 1.82 * ratio + 1.43) * s.median()
        rank = max(1, int((s > threshold).sum()))
    kept: Tensor = mean + (u[:, :rank] * s[:rank]) @ v[:rank]
    return kept.to(answers.dtype)


def topic_order(egos: EgoGraphs, *, topics: int = 8, seed: int = 0) -> Tensor:
    """[G] an order in which queries come topic by topic, as of a client with interests, to put off a coverage alarm.

    Args:
        egos: G ego graphs; topics are k-means cells of root features.
        topics: number of cells.
        seed: of cells and of the order within each.

    Raises:
        ValueError: for more topics than ego graphs.

    Source: ours.
    """
    from sklearn.cluster import KMeans  # loading it takes seconds, and most runs need none

    if not 1 <= topics <= len(egos):
        raise ValueError(f"topics must lie between 1 and the {len(egos)} egos, got {topics}")
    features = egos.x[egos.start[:-1]].numpy()
    kind = KMeans(topics, n_init=4, random_state=derived_seed(seed, "topics") % 2**32).fit_predict(features)
    mixed = torch.randperm(len(egos), generator=torch_rng(seed, "topics"))
    return mixed[torch.from_numpy(kind)[mixed].argsort(stable=True)]


def covert_answers(
    service: EmbeddingService,
    egos: EgoGraphs,
    *,
    texts: Sequence[str] | None = None,
    order: Tensor | None = None,
    cover: EgoGraphs | None = None,
    cover_texts: Sequence[str] | None = None,
    clients: Sequence[str] = ("0",),
    seed: int = 0,
) -> Tensor:
    """Gets answers in a chosen order, hidden among benign queries and spread over several accounts.

    Args:
        service: that is asked.
        egos: G ego graphs whose answers are wanted.
        texts: [G] texts of their roots.
        order: [G] in which they are asked, see `topic_order`; by default as they stand.
        cover: B further ego graphs, benign ones, whose answers are thrown away; they are mixed in at random places.
        cover_texts: [B] texts of their roots.
        clients: accounts that take turns, query by query.
        seed: of the places.

    Returns:
        [G, ...] answers, in the order of `egos`.

    Raises:
        ValueError: for no account, an order that leaves some out, or cover texts that are missing; `BudgetExceeded` as
            the service does.

    Source: ours.
    """
    if not clients:
        raise ValueError("clients is empty: name at least one account")
    order = torch.arange(len(egos)) if order is None else order
    if not torch.equal(order.sort().values, torch.arange(len(egos))):
        raise ValueError(f"order must hold each of the {len(egos)} ego graphs once")
    if cover is not None and (texts is None) != (cover_texts is None):
        raise ValueError("texts and cover_texts must be given both or neither: otherwise the cover gives itself away")
    everything = egos if cover is None else EgoGraphs.joined([egos, cover])
    told = None if texts is None else [*texts, *(cover_texts or ())]
    places = torch.randperm(len(everything), generator=torch_rng(seed, "cover"))
    stream = torch.arange(len(egos), len(everything))
    sent = torch.empty(len(everything), dtype=torch.int64)
    sent[places[: len(egos)].sort().values] = order
    sent[places[len(egos) :]] = stream
    found: Tensor | None = None
    for turn, client in enumerate(clients):
        mine = sent[turn :: len(clients)]
        if not len(mine):
            continue
        asked = None if told is None else [told[i] for i in mine.tolist()]
        answers = service.answer(everything[mine], texts=asked, client=client)
        if found is None:
            found = answers.new_empty(len(everything), *answers.shape[1:])
        found[mine] = answers
    assert found is not None
    return found[: len(egos)]


def finetuned(
    surrogate: Surrogate, egos: EgoGraphs, text_vectors: Tensor, *, epochs: int = 10, learning_rate: float = 1e-3
) -> Surrogate:
    """Trains a copy of an extracted encoder on the attacker's own pairs, to wash a watermark out.

    Symmetric InfoNCE at temperature 0.07 between A(g) and the public text encoder's vector of a text about g.

    Args:
        surrogate: stays as it is.
        egos: N ego graphs of the attacker's own.
        text_vectors: [N, d] vectors of texts about them, such as those of their roots.
        epochs: passes over them.
        learning_rate: of AdamW.

    Returns:
        The fine-tuned copy, whose cost includes that of the surrogate.

    Raises:
        ValueError: for text vectors that are not [N, d].

    Source: removal by fine-tuning is the usual test of a model watermark; the loss is GraphCLIP's.
    """
    if text_vectors.shape != (len(egos), surrogate.dimension):
        raise ValueError(f"text_vectors must be [{len(egos)}, {surrogate.dimension}], got {list(text_vectors.shape)}")
    copy = deepcopy(surrogate)
    copy.config = replace(copy.config, epochs=epochs, min_steps=1, learning_rate=learning_rate)
    paired = text_vectors.detach().to(copy.scale.device, torch.float32, copy=True)
    log_scale = torch.tensor(math.log(1 / TEMPERATURE), device=copy.scale.device)

    def loss(vectors: Tensor, rows: Tensor) -> Tensor:
        return info_nce(vectors, paired[rows.to(paired.device)], log_scale)

    return fit_surrogate(copy, egos, loss)


def _without(egos: EgoGraphs, keep: Tensor) -> EgoGraphs:
    """The ego graphs induced on some of their nodes, roots among them; a root left alone gets a loop."""
    owner = torch.arange(len(egos)).repeat_interleave(egos.start.diff())
    whose = torch.arange(len(egos)).repeat_interleave(egos.edge_start.diff())
    start = _starts(torch.bincount(owner[keep], minlength=len(egos)))
    place = keep.long().cumsum(0) - 1 - start[owner]
    ends = egos.edge_index + egos.start[whose]
    inside = keep[ends].all(0)
    edges, whose = place[ends[:, inside]], whose[inside]
    alone = (torch.bincount(whose, minlength=len(egos)) == 0).nonzero().squeeze(1)
    whose, order = torch.cat([whose, alone]).sort(stable=True)
    edges = torch.cat([edges, torch.zeros(2, len(alone), dtype=torch.int64)], 1)[:, order]
    edge_start = _starts(torch.bincount(whose, minlength=len(egos)))
    return EgoGraphs(
        x=egos.x[keep],
        pe=random_walk_pe(edges, start, edge_start, egos.pe.shape[1]),
        nodes=egos.nodes[keep],
        start=start,
        edge_index=edges,
        edge_start=edge_start,
    )


def _starts(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])

"""Contrastive pretraining of the victim: an ego graph and its summary attract, all others of the batch repel."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from aisec_common.seeding import torch_rng
from aisec_common.torch.device import resolve_device
from aisec_common.torch.trained import trained
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from gfmextract.cost import flops_of
from gfmextract.pyg_ego import EgoBatch, EgoGraphs, ego_graphs
from gfmextract.pyg_graph_clip import GraphClip, GraphClipConfig

if TYPE_CHECKING:
    from gfmextract.hf_text_tower import TextTower
    from gfmextract.text_graph import TextGraph

Summaries = Callable[["TextGraph", EgoGraphs], Sequence[str]]
"""What each of G ego graphs of a graph is about, [G] texts."""
Show = Callable[[str, int, int], None]
LARGEST_SCALE = 100.0
VERSION = 2
"""Raised whenever the same settings lead to other weights, so that no older victim is read from the cache."""


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """How a victim is pretrained; GraphCLIP itself takes 30 epochs of batches of 7200 at 1e-5.

    The tiny default leaves the perturbation out, which triples the time; GraphCLIP takes 3 steps of 1e-2.

    Args:
        encoder: sizes of the graph encoder.
        epochs: passes over all ego graphs.
        batch_size: pairs that are told apart at once.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        feature_mask: chance that a feature is zeroed in a whole batch; 0 switches it off.
        edge_drop: chance that an edge is left out; 0 switches it off.
        perturbation_steps: passes a step, each with the features pushed where the loss grows; 0 switches it off.
        perturbation_step: how far one push goes.
        hops: radius of the ego graphs.
        cap: most nodes of one.
        device: auto, cpu, cuda, ...

    Raises:
        ValueError: for values out of range.

    Source: GraphCLIP (arXiv 2410.10329), authors' code for the augmentations; epochs, batch and rate are ours.
    """

    encoder: GraphClipConfig = field(default_factory=GraphClipConfig)
    epochs: int = 12
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    feature_mask: float = 0.3
    edge_drop: float = 0.2
    perturbation_steps: int = 0
    perturbation_step: float = 1e-2
    hops: int = 1
    cap: int = 9
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(
                f"epochs must be at least 1 and batch_size at least 2, got {self.epochs} and {self.batch_size}"
            )
        if not (0 <= self.feature_mask < 1 and 0 <= self.edge_drop < 1):
            raise ValueError(
                f"feature_mask and edge_drop must be in [0, 1), got {self.feature_mask} and {self.edge_drop}"
            )
        if self.learning_rate <= 0 or min(self.weight_decay, self.perturbation_steps, self.perturbation_step) < 0:
            raise ValueError("learning_rate must be above 0; weight_decay and perturbations at least 0")


def info_nce(graphs: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    """How badly graphs and texts find their partners, both ways.

    L = (CE(S) + CE(S^T)) / 2, S_ij = exp(log_scale) cos(graph_i, text_j), the right partner on the diagonal

    Args:
        graphs: [B, d].
        texts: [B, d].
        log_scale: logarithm of the inverse temperature, at most ln 100.

    Raises:
        ValueError: for shapes that do not agree.

    >>> float(info_nce(torch.eye(2), torch.eye(2), torch.tensor(4.0))) < 1e-6
    True

    Source: GraphCLIP (arXiv 2410.10329), contrastive loss.
    """
    if graphs.shape != texts.shape or graphs.ndim != 2:
        raise ValueError(f"graphs and texts must be [B, d] alike, got {list(graphs.shape)} and {list(texts.shape)}")
    scores = log_scale.exp().clamp(max=LARGEST_SCALE) * (normalize(graphs) @ normalize(texts).T)
    partner = torch.arange(len(graphs), device=graphs.device)
    return (cross_entropy(scores, partner) + cross_entropy(scores.T, partner)) / 2


def pretrain(
    graphs: Sequence[TextGraph],
    summaries: Summaries,
    tower: TextTower,
    config: PretrainingConfig | None = None,
    seed: int = 0,
    show: Show | None = None,
) -> GraphClip:
    """Trains a victim on every node's ego graph and summary, or reads it from the user's cache.

    Ego graphs, positions and text vectors are made once. The cache knows a victim by its settings, seed, ego graphs and
    text vectors.

    Args:
        graphs: to learn from, features of one width.
        summaries: what each ego graph is about, such as `gfmextract.synthetic.summaries`.
        tower: the frozen text encoder.
        config: settings.
        seed: of weights, order and augmentations.
        show: progress, as `aisec_common.progress.counting` gives it.

    Returns:
        The victim in eval mode; its `cost` is that of the training, also where it was read from the cache.

    Raises:
        ValueError: for no graph, features of unequal width, or a number of summaries that does not fit.

    Source: GraphCLIP (arXiv 2410.10329), pretraining.
    """
    config = config or PretrainingConfig()
    if not graphs:
        raise ValueError("graphs is empty: pretrain on at least one")
    each, texts = [], []
    for graph in graphs:
        egos = ego_graphs(
            graph, torch.arange(len(graph)), hops=config.hops, cap=config.cap, positions=config.encoder.positions
        )
        told = summaries(graph, egos)
        if len(told) != len(egos):
            raise ValueError(f"summaries gave {len(told)} texts for {len(egos)} ego graphs of graph {graph.name!r}")
        each.append(egos)
        texts.append(tower.encode(told))
    joint, partners = EgoGraphs.joined(each), torch.cat(texts)
    victim = GraphClip(config.encoder, features=joint.x.shape[1], tower=tower, seed=seed)
    victim.to(resolve_device(config.device))
    recipe = asdict(replace(config, device="cpu")) | {
        "version": VERSION,
        "seed": seed,
        "data": _digest(joint, partners),
    }
    trained(victim, "gfmextract-victim", recipe, lambda: _train(victim, joint, partners, config, seed, show))
    return victim.eval()


def _train(
    victim: GraphClip, egos: EgoGraphs, texts: Tensor, config: PretrainingConfig, seed: int, show: Show | None
) -> None:
    rng = torch_rng(seed, "pretraining")
    optimizer = torch.optim.AdamW(victim.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    device = victim.log_scale.device
    texts = texts.to(device)
    parts = max(1, len(egos) // config.batch_size)
    begin, steps = time.perf_counter(), 0
    victim.train()
    for epoch in range(config.epochs):
        for rows in torch.randperm(len(egos), generator=rng).tensor_split(parts):
            optimizer.zero_grad()
            contrast(victim, egos[rows].batch().to(device), texts[rows.to(device)], config, rng)
            optimizer.step()
            steps += 1
        if show:
            show("pretraining the victim", epoch + 1, config.epochs)
    seconds = time.perf_counter() - begin
    some = torch.arange(len(egos))[: config.batch_size]
    copy = deepcopy(victim)  # counting runs a step, which would move its running means
    flops = flops_of(lambda: contrast(copy, egos[some].batch().to(device), texts[some.to(device)], config, rng))
    victim.spent.copy_(torch.tensor([seconds, flops * steps * len(egos) / parts / len(some)]))


def contrast(
    encoder: GraphClip, batch: EgoBatch, texts: Tensor, config: PretrainingConfig, rng: torch.Generator
) -> float:
    """Adds the gradient of one step of pretraining to the parameters' `grad`.

    The features are masked by column, edges dropped, and the features then perturbed: of m passes each adds 1/m of its
    gradient to the parameters, and moves the perturbation by `perturbation_step` along the sign of its own.

    Args:
        encoder: in train mode.
        batch: B ego graphs; changed by the augmentations.
        texts: [B, d] vectors of their summaries.
        config: settings.
        rng: of masks and first perturbations.

    Returns:
        The mean loss of the passes.

    Source: GraphCLIP (arXiv 2410.10329), invariant alignment by perturbed features.
    """
    x, edges = batch.x, batch.edge_index
    x = x * (torch.rand(x.shape[1], generator=rng) >= config.feature_mask).to(x)
    if config.edge_drop:
        batch.edge_index = edges[:, (torch.rand(edges.shape[1], generator=rng) >= config.edge_drop).to(x.device)]
    passes = max(1, config.perturbation_steps)
    reach = config.perturbation_step if config.perturbation_steps else 0.0
    moved = nn.Parameter(((torch.rand(x.shape, generator=rng) * 2 - 1) * reach).to(x))
    total = 0.0
    for _ in range(passes):
        batch.x = x + moved
        loss = info_nce(encoder(batch), texts, encoder.log_scale) / passes
        loss.backward()  # type: ignore[no-untyped-call]
        assert moved.grad is not None
        with torch.no_grad():
            moved.add_(moved.grad.sign(), alpha=reach)
        moved.grad = None
        total += loss.item()
    return total


def _digest(egos: EgoGraphs, texts: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in (egos.x, egos.pe, egos.start, egos.edge_index, egos.edge_start, texts):
        digest.update(str(list(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()

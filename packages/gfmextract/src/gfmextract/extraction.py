"""The attack: supervised embedding regression on a service's answers."""

from __future__ import annotations

import torch
from aisec_common.seeding import torch_rng
from torch import Tensor
from torch.nn import functional

from gfmextract.attack import Attack, Copy, Gathered, GraphCopy
from gfmextract.config import ExtractionConfig
from gfmextract.pyg_ego import EgoGraphs
from gfmextract.surrogate import Loss, Show, Surrogate, fit_surrogate, fresh_surrogate


class EmbeddingRegression(Attack):
    """The paper's attack: an encoder A trained to give the service's vectors, without labels, texts or pairs.

    min_A (1 / Q) sum_g l(A(g), z_g), by default l = norm(A(g) - z_g)^2, relative to the mean square of the answers

    Args:
        config: fields of `ExtractionConfig` by name.

    >>> from gfmextract.text_graph import TextGraph
    >>> graph = TextGraph(
    ...     name="pair", x=torch.eye(2), edge_index=torch.tensor([[0], [1]]), texts=("a", "b"),
    ...     y=torch.tensor([0, 1]), classes=("first", "second"),
    ... )
    >>> from gfmextract.pyg_ego import ego_graphs
    >>> egos = ego_graphs(graph, torch.tensor([0, 1]))
    >>> surrogate = EmbeddingRegression(backbone="mlp", epochs=1, min_steps=1).fit(egos, torch.eye(2))
    >>> surrogate.encode_graph(egos.batch()).shape
    torch.Size([2, 2])

    Source: arXiv 2511.11912, supervised embedding regression; loss, backbones and schedule are ours.
    """

    name = "embedding regression"
    levels = ("embedding",)

    def fit(
        self, egos: EgoGraphs, answers: Tensor, *, start: Surrogate | None = None, show: Show | None = None
    ) -> Surrogate:
        """Trains an encoder on answered queries.

        Args:
            egos: the Q queries.
            answers: [Q, d] what came back.
            start: an encoder to train further, in place of fresh weights; it is left as it is.
            show: progress.

        Raises:
            ValueError: for answers that are not [Q, d] and finite; the message names the row.
        """
        return self._regress(self.config, egos, answers, start, show)

    def copy(self, gathered: Gathered) -> Copy:
        """The trained encoder."""
        assert gathered.answers is not None
        return GraphCopy(encoder=self._regress(gathered.config, gathered.egos, gathered.answers, None, gathered.show))

    def _regress(
        self, config: ExtractionConfig, egos: EgoGraphs, answers: Tensor, start: Surrogate | None, show: Show | None
    ) -> Surrogate:
        if answers.ndim != 2 or len(answers) != len(egos):
            raise ValueError(f"answers must be [{len(egos)}, d], one for each ego graph, got {list(answers.shape)}")
        if not torch.isfinite(answers).all():
            row = int((~torch.isfinite(answers)).any(1).nonzero()[0])
            raise ValueError(f"answers of row {row} hold NaN or infinity: drop that query")
        surrogate = fresh_surrogate(config, egos, answers.shape[1])
        if start is not None:
            surrogate.load_state_dict(start.state_dict())
        targets = answers.to(surrogate.scale.device, torch.float32, copy=True)  # answers cannot be differentiated
        if config.normalize_targets:
            targets = functional.normalize(targets, dim=1)
        unit = targets.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
        if start is None:
            surrogate.scale.copy_(unit)
        return fit_surrogate(surrogate, egos, _regression(config, targets, unit), show=show)


class PermutedAnswers(EmbeddingRegression):
    """The control: embedding regression on the same answers, given to the wrong queries."""

    name = "permuted answers"

    def _regress(
        self, config: ExtractionConfig, egos: EgoGraphs, answers: Tensor, start: Surrogate | None, show: Show | None
    ) -> Surrogate:
        order = torch.randperm(len(answers), generator=torch_rng(config.seed, "permuted"))
        return super()._regress(config, egos, answers[order], start, show)


def _regression(config: ExtractionConfig, targets: Tensor, unit: Tensor) -> Loss:
    """The loss of the configuration; `unit` is the root mean square of the targets' entries."""

    def loss(vectors: Tensor, rows: Tensor) -> Tensor:
        wanted = targets[rows.to(targets.device)]
        if config.loss == "cosine":
            return 1.0 - functional.cosine_similarity(vectors, wanted).mean()
        if config.loss == "huber":
            return functional.huber_loss(vectors / unit, wanted / unit)
        return functional.mse_loss(vectors / unit, wanted / unit)

    return loss

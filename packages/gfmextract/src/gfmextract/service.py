"""A graph-embedding service in process: answers ego graphs, counts what it answered, defends what leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from gfmextract.answer_cache import AnswerCache
from gfmextract.defenses import Budget, Defense, LabelOnly
from gfmextract.pyg_ego import EgoGraphs
from gfmextract.victim import Victim, encode_egos
from gfmextract.watermark import Watermark
from gfmextract.zero_shot import class_scores, predict

if TYPE_CHECKING:
    from gfmextract.monitor import QueryMonitor

Level = Literal["embedding", "scores", "label"]
LEVELS: tuple[Level, ...] = ("embedding", "scores", "label")


class BudgetExceeded(ValueError):
    """A client asked for more answers than the service gives it; nothing was answered and nothing counted."""


class EmbeddingService:
    """Answers submitted ego graphs with what its level and its defences let out of a victim's embedding.

    z = D_n(...D_1(G(g))); level `embedding` returns z, `scores` cos(z, T(p_c)) of every class, `label` the best class.
    Of the victim only `encode_graph` and `encode_text` are ever called. Rounded or projected embeddings, the levels
    between `embedding` and `scores`, are the defences `Quantize` and `Project`.

    Args:
        victim: the two encoders.
        level: what is returned.
        budget: how many answers one client gets in all; None is without end. It holds for each client: whoever has
            several accounts has several budgets (`adaptive.covert_answers`).
        defenses: applied in order. A `Budget` lowers `budget`, a `LabelOnly` makes the level `label`.
        prompts: texts of the classes, see `TextGraph.prompts`; needed for scores and labels.
        monitor: is shown the undefended embedding of every query.
        cache: folder in which the victim's undefended answers are kept by subgraph and by victim, for victims that are
            modules; None keeps none.

    Raises:
        ValueError: for an unknown level, a budget below 0, fewer than two prompts where classes are returned, or a
            cache for a victim whose weights cannot be told from another's.

    Source: arXiv 2511.11912, section on the threat model; levels and defences are ours.

    >>> from gfmextract.pyg_ego import ego_graphs
    >>> from gfmextract.text_graph import TextGraph
    >>> class Roots:  # a victim that embeds a root by its features
    ...     def encode_graph(self, batch): return batch.x[batch.root_n_index]
    ...     def encode_text(self, texts): return torch.eye(len(texts))
    >>> y = torch.tensor([0, 1])
    >>> pair = TextGraph(
    ...     name="pair", x=torch.eye(2), edge_index=torch.tensor([[0], [1]]), texts=("a", "b"), y=y, classes=("a", "b")
    ... )
    >>> service = EmbeddingService(Roots(), level="label", budget=2, prompts=pair.prompts)
    >>> service.answer(ego_graphs(pair, torch.tensor([1, 0]))), service.queries["0"]
    (tensor([1, 0]), 2)
    """

    def __init__(
        self,
        victim: Victim,
        *,
        level: Level = "embedding",
        budget: int | None = None,
        defenses: Sequence[Defense] = (),
        prompts: Sequence[str] | None = None,
        monitor: QueryMonitor | None = None,
        cache: Path | None = None,
    ) -> None:
        if level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
        if budget is not None and budget < 0:
            raise ValueError(f"budget must be at least 0, got {budget}")
        self.defenses = tuple(defenses)
        self.level: Level = "label" if any(isinstance(each, LabelOnly) for each in self.defenses) else level
        caps = [each.n for each in self.defenses if isinstance(each, Budget)]
        self.budget = min([*caps, budget] if budget is not None else caps, default=None)
        if self.level != "embedding" and (prompts is None or len(prompts) < 2):
            raise ValueError(f"prompts must hold at least two texts for level {self.level!r}: pass graph.prompts")
        self.queries: Counter[str] = Counter()
        self.monitor = monitor
        self.victim = victim
        self._prompts = prompts
        self._classes: Tensor | None = None
        self._cache = AnswerCache(cache, victim) if cache is not None else None

    @property
    def total_queries(self) -> int:
        """Answers given to all clients together; a repeat counts again."""
        return self.queries.total()

    @property
    def watermark(self) -> Watermark | None:
        """The watermark among the defences, if there is one."""
        return next((each for each in self.defenses if isinstance(each, Watermark)), None)

    def answer(self, egos: EgoGraphs, *, texts: Sequence[str] | None = None, client: str = "0") -> Tensor:
        """What a client gets for its ego graphs; each counts once, however often it was asked before.

        Args:
            egos: G ego graphs.
            texts: [G] texts of the roots; only a watermark reads them.
            client: whose budget and whose record this is.

        Returns:
            [G, d] embeddings, [G, C] scores or [G] labels, ordinary tensors on the CPU.

        Raises:
            BudgetExceeded: when fewer than G answers are left for the client.
            TypeError: for ego graphs of another kind.
            ValueError: for no ego graph, or texts that are missing or too few.
        """
        if not isinstance(egos, EgoGraphs):
            raise TypeError(f"egos must be EgoGraphs, got {type(egos).__name__}: use ego_graphs or EgoGraphs.of")
        if not len(egos):
            raise ValueError("egos is empty: submit at least one ego graph")
        if texts is not None and len(texts) != len(egos):
            raise ValueError(f"texts must hold one root text for each of {len(egos)} ego graphs, got {len(texts)}")
        if texts is None and self.watermark is not None:
            raise ValueError(
                "texts is missing: a watermarked service reads the root texts, pass one for each ego graph"
            )
        if self.budget is not None and self.queries[client] + len(egos) > self.budget:
            raise BudgetExceeded(
                f"egos holds {len(egos)} queries, client {client!r} has {self.budget - self.queries[client]} of "
                f"{self.budget} left: submit fewer"
            )
        plain = self._cache.answers(egos) if self._cache is not None else encode_egos(self.victim, egos)
        answers = plain
        with torch.no_grad():
            for defense in self.defenses:
                answers = defense(answers, egos, texts)
            if self.level != "embedding":
                returned = class_scores if self.level == "scores" else predict
                answers = returned(answers, self._class_vectors())
        if self.monitor is not None:
            self.monitor.observe(client, plain)
        self.queries[client] += len(egos)
        return answers

    def _class_vectors(self) -> Tensor:
        if self._classes is None:
            assert self._prompts is not None  # checked when the service was made
            self._classes = self.victim.encode_text(self._prompts).detach().cpu()
        return self._classes

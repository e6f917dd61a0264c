"""What all attacks share: asking a service in every row of a scenario, and measuring the copy beside the victim."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from gfmextract.config import ExtractionConfig
from gfmextract.cost import Cost
from gfmextract.metrics import measures
from gfmextract.pyg_ego import EgoGraphs
from gfmextract.scenarios import Row, Scenario
from gfmextract.surrogate import Show, Surrogate
from gfmextract.victim import encode_egos

if TYPE_CHECKING:
    import pandas as pd

    from gfmextract.service import EmbeddingService

TextEncoder = Callable[[list[str]], Tensor]
COLUMNS = ("scenario", "row", "attack", "backbone", "layers", "hidden", "queried", "test", "queries")


class Copy(Protocol):
    """What an attack leaves behind."""

    @property
    def cost(self) -> Cost:
        """Of its training."""

    def vectors(self, egos: EgoGraphs, texts: Sequence[str]) -> Tensor:
        """[G, d] vectors of ego graphs whose roots carry the texts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphCopy:
    """A copy that reads graphs: a trained or an untrained encoder."""

    encoder: Surrogate

    @property
    def cost(self) -> Cost:
        return self.encoder.cost

    def vectors(self, egos: EgoGraphs, texts: Sequence[str]) -> Tensor:
        return encode_egos(self.encoder, egos)


@dataclass(frozen=True, kw_only=True, eq=False)
class ExtractionResult:
    """What an attack reached in a scenario.

    Args:
        rows: one a row of the scenario, see `table`.
        copies: what each row left behind.
    """

    rows: tuple[dict[str, Any], ...]
    copies: tuple[Copy, ...]

    @property
    def encoder(self) -> Surrogate:
        """The encoder of the last row, which in S4 has the largest budget.

        Raises:
            ValueError: when the attack trained none.
        """
        last = self.copies[-1]
        if not isinstance(last, GraphCopy):
            raise ValueError(f"attack {self.rows[-1]['attack']!r} has no encoder of graphs: use its copies")
        return last.encoder

    def table(self) -> pd.DataFrame:
        """A line a row: scenario, row, attack, backbone, layers, hidden, queried, test, queries, then

        accuracy and victim_accuracy, gap (the second minus the first), fidelity, cosine, cka, certified_agreement (see
        `measures`), seconds and flops of the training, cost_ratio and flop_ratio (over the victim's, where known).
        """
        import pandas as pd

        return pd.DataFrame(list(self.rows))


@dataclass(frozen=True, kw_only=True, eq=False)
class Gathered:
    """What an attacker holds in one row, before it trains.

    Args:
        config: of its encoder in this row.
        row: the row.
        egos: Q ego graphs.
        answers: what the service gave for them; None for an attack that asks for nothing.
        level: of the answers.
        dimension: d of the victim's space.
        text: the public text encoder, where there is one.
        show: progress.
    """

    config: ExtractionConfig
    row: Row
    egos: EgoGraphs
    answers: Tensor | None
    level: str
    dimension: int
    text: TextEncoder | None
    show: Show | None


class Attack(ABC):
    """What all attacks share: asking a service for a scenario's queries, and measuring the copy beside the victim.

    An attacker asks for each ego graph once a run and keeps the answer: rows that share queries share answers, and the
    service counts them once. Rows that differ in nothing but their test share a copy. The victim's own vectors of the
    test nodes are the auditor's and are not counted.
    """

    name: ClassVar[str]
    levels: ClassVar[tuple[str, ...]]
    """Response levels that it can use, the cheapest last; none where it asks for nothing."""

    def __init__(self, **config: Any) -> None:
        self.config = ExtractionConfig(**config)

    @abstractmethod
    def copy(self, gathered: Gathered) -> Copy:
        """The copy of one row."""

    def run(
        self,
        service: EmbeddingService,
        scenario: Scenario,
        *,
        text: TextEncoder | None,
        client: str = "0",
        victim_cost: Cost | None = None,
        show: Show | None = None,
    ) -> ExtractionResult:
        """Extracts and measures in every row of a scenario.

        Args:
            service: that is asked.
            scenario: what is asked and tested.
            text: the public text encoder, [n] sentences to [n, d]; None where the victim has none, and then only
                cosine and cka are measured.
            client: as whom it asks.
            victim_cost: of the victim's pretraining on the same device, for the cost ratios.
            show: progress, as `aisec_common.progress.counting` gives it.

        Returns:
            A row and a copy for each row of the scenario.

        Raises:
            ValueError: for a service whose response level the attack cannot use; `BudgetExceeded` as the service does.
        """
        if self.levels and service.level not in self.levels:
            raise ValueError(
                f"service answers at level {service.level!r}, but {self.name} needs level"
                f" {' or '.join(map(repr, self.levels))}: use another attack or service"
            )
        asked, tests = _Asked(service, client), _Tests(service, text)
        rows, copies = [], []
        trained: dict[tuple[Any, ...], Copy] = {}  # S5 with all nodes visible is S2: one copy serves both
        for row in scenario.rows:
            changed = {name: getattr(row, name) for name in ("backbone", "layers", "hidden")}
            config = replace(self.config, **{name: value for name, value in changed.items() if value is not None})
            egos = row.query_egos()
            answers = asked.answers(row, egos) if self.levels else None
            test = tests.of(row)
            gathered = Gathered(
                config=config,
                row=row,
                egos=egos,
                answers=answers,
                level=service.level,
                dimension=test.victim.shape[1],
                text=text,
                show=show,
            )
            key = (config, *_source(row), tuple(row.queries.tolist()))
            if key not in trained:
                trained[key] = self.copy(gathered)
            elif show:
                show(f"training {config.backbone}", 1, 1)
            made = trained[key]
            told = (scenario.name, row.label, self.name, config.backbone, config.layers, config.hidden)
            counts = (row.queried.name, row.test.name, len(egos) if self.levels else 0)
            found = measures(made.vectors(test.egos, test.texts), test.victim, row.test.y[row.test_nodes], test.prompts)
            ratios = made.cost.over(victim_cost) if victim_cost else (float("nan"),) * 2
            measured: dict[str, object] = dict(zip(COLUMNS, told + counts, strict=True))
            measured |= found | {"seconds": made.cost.seconds, "flops": made.cost.flops}
            rows.append(measured | dict(zip(("cost_ratio", "flop_ratio"), ratios, strict=True)))
            copies.append(made)
        return ExtractionResult(rows=tuple(rows), copies=tuple(copies))


def _source(row: Row) -> tuple[Any, ...]:
    """What an ego graph of a root depends on."""
    excluded = row.excluded
    return row.queried, row.neighbourhood, None if excluded is None else tuple(excluded.tolist())


@dataclass
class _Asked:
    """Answers that a client has got, by graph, exclusion and node."""

    service: EmbeddingService
    client: str
    got: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def answers(self, row: Row, egos: EgoGraphs) -> Tensor:
        key = _source(row)
        nodes, known = self.got.get(key, (row.queries[:0], None))
        new = ~torch.isin(row.queries, nodes)
        if new.any():
            texts = [row.queried.texts[node] for node in row.queries[new].tolist()]
            fresh = self.service.answer(egos[new.nonzero().squeeze(1)], texts=texts, client=self.client)
            fresh = fresh.detach().cpu().clone()
            if len(fresh) != len(texts):
                raise ValueError(f"service answered {len(fresh)} of {len(texts)} ego graphs: one answer for each")
            nodes = torch.cat([nodes, row.queries[new]])
            known = fresh if known is None else torch.cat([known, fresh])
            self.got[key] = nodes, known
        assert known is not None
        place = torch.full((len(row.queried),), -1, dtype=torch.int64)
        place[nodes] = torch.arange(len(nodes))
        return known[place[row.queries]]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Test:
    egos: EgoGraphs
    texts: list[str]
    victim: Tensor
    prompts: Tensor | None


@dataclass
class _Tests:
    """What copies are measured against, once for rows that share it."""

    service: EmbeddingService
    text: TextEncoder | None
    made: dict[tuple[Any, ...], _Test] = field(default_factory=dict)

    def of(self, row: Row) -> _Test:
        key = (row.test, row.neighbourhood, tuple(row.test_nodes.tolist()))
        if key not in self.made:
            egos = row.test_egos()
            self.made[key] = _Test(
                egos=egos,
                texts=[row.test.texts[node] for node in row.test_nodes.tolist()],
                victim=encode_egos(self.service.victim, egos),
                prompts=None if self.text is None else self.text(row.test.prompts),
            )
        return self.made[key]

"""Every defence beside the attackers who know it: what it leaves to honest users, and what to copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gfmextract.adaptive import averaged_answers, covert_answers, finetuned, further_queries, pca_denoised, topic_order
from gfmextract.attack import Gathered, GraphCopy
from gfmextract.baselines import HardLabels
from gfmextract.choices import DEFENSES
from gfmextract.defenses import Budget, LabelOnly, Noise, Project, Quantize, Watermark
from gfmextract.metrics import accuracy, measures
from gfmextract.monitor import QueryMonitor
from gfmextract.records import Rows
from gfmextract.service import EmbeddingService
from gfmextract.simulated_clients import benign_queries, crawling_queries
from gfmextract.victim import encode_egos
from gfmextract.zero_shot import predict

if TYPE_CHECKING:
    from gfmextract.defenses import Defense
    from gfmextract.extraction import EmbeddingRegression
    from gfmextract.pyg_ego import EgoGraphs
    from gfmextract.scenarios import Row
    from gfmextract.surrogate import Surrogate
    from gfmextract.victim import GraphEncoder, Victim

SIGMAS, BITS, WIDTHS, SHARES = (1.0, 2.0), (1, 4), (8, 2), (0.05, 0.25)
"""Of noise; of quantisation; d / WIDTH directions are kept of d; share of the queries that a budget allows."""
REPEATS, JITTER, FURTHER, ACCOUNTS = 8, 0.1, 3, 20
CLIENTS, COVER = 20, 1.0
"""Simulated streams of a kind that a monitor is judged on, and benign queries an attacker sends for each of his own."""
NAIVE = "takes the answers as they come"
MONITORED = "cells_32"
Show = Callable[[str, int, int], None]
Keep = Callable[[str, Callable[[], Rows]], Rows]
"""Gives the rows of a setting: those that are kept, or what the function makes."""


@dataclass(frozen=True, eq=False)
class Place:
    """Where copies are compared with the victim: ego graphs, texts and classes of roots, its vectors, the prompts'."""

    egos: EgoGraphs
    texts: list[str]
    y: Tensor
    victim: Tensor
    prompts: Tensor

    @classmethod
    def of(cls, row: Row, victim: Victim) -> Place:
        """The test of a row."""
        egos = row.test_egos()
        texts = [row.test.texts[node] for node in row.test_nodes.tolist()]
        return cls(
            egos, texts, row.test.y[row.test_nodes], encode_egos(victim, egos), victim.encode_text(row.test.prompts)
        )

    def measured(self, vectors: Tensor) -> dict[str, float]:
        """The measures of a copy's vectors [G, d]."""
        return measures(vectors, self.victim, self.y, self.prompts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """One row of a scenario, queried again through every defence.

    Args:
        victim: behind the service.
        row: what is asked, and where copies are judged.
        attack: of the extractor.
        seed: of keys and of what attackers draw.
        adaptive: whether attackers who know the defence are run.

    Source: ours; arXiv 2511.11912 asks for deployment-aware defences.
    """

    victim: Victim
    row: Row
    attack: EmbeddingRegression
    seed: int = 0
    adaptive: bool = True

    @cached_property
    def place(self) -> Place:
        """Where copies are judged, and honest users served."""
        return Place.of(self.row, self.victim)

    @cached_property
    def egos(self) -> EgoGraphs:
        """What the extractor asks about."""
        return self.row.query_egos()

    @cached_property
    def texts(self) -> list[str]:
        """Of their roots."""
        return [self.row.queried.texts[node] for node in self.row.queries.tolist()]

    @cached_property
    def plain(self) -> Tensor:
        """The victim's undefended vectors of the queries, which the service has at hand."""
        return encode_egos(self.victim, self.egos)

    def rows(self, name: str, *, show: Show | None = None, keep: Keep = lambda setting, make: make()) -> Rows:
        """A row for each setting of a defence and each attacker.

        Args:
            name: of `DEFENSES`, or "none".
            show: progress.
            keep: called with each setting and what makes its rows. Its attackers are one unit: fresh noise goes on
                from one to the next.

        Returns:
            Rows of defence, setting, attacker, adaptive (whether he knows the defence), utility (accuracy of the
            victim's answers through the defence), accuracy, fidelity and cosine of his copy, and the answers it took.
            Of a watermark also the p-value; of a monitor the queries until its alarm, the area under the ROC curve over
            simulated clients of the best of its statistics on these clients, and its rate of false alarms.

        Raises:
            ValueError: for an unknown defence.
            UnfitDefense: for a watermark that these texts cannot carry, or too few queries for a monitor.
        """
        if name not in ("none", *DEFENSES):
            raise ValueError(f"name must be none or one of {', '.join(DEFENSES)}, not {name!r}")
        units: dict[str, Callable[[], Rows]] = {MONITORED: self._monitored}
        if name != "monitor":
            units = {at: partial(self._defended, name, at, defenses) for at, defenses in self._settings(name).items()}
        rows: Rows = []
        for done, (setting, make) in enumerate(units.items()):
            if show is not None:
                show(f"defence {name}", done, len(units))
            rows += keep(setting, make)
        if show is not None:
            show(f"defence {name}", len(units), len(units))
        return rows

    def _defended(self, name: str, setting: str, defenses: Sequence[Defense]) -> Rows:
        """A row for each attacker."""
        rows: Rows = []
        utility = self._utility(defenses)
        for attacker, attempt in self._attackers(name).items():
            service = self._service(defenses)
            copy = attempt(service)
            told = {"defence": name, "setting": setting, "attacker": attacker, "adaptive": attacker != NAIVE}
            rows.append(told | {"utility": utility} | self._judged(copy, service.total_queries))
            if service.watermark is not None:
                rows[-1]["pvalue"] = service.watermark.verify(copy).pvalue
        return rows

    def _settings(self, name: str) -> dict[str, tuple[Defense, ...]]:
        key, width = self.seed, self.plain.shape[1]
        if name in ("keyed-noise", "fresh-noise"):
            mode = "keyed" if name == "keyed-noise" else "fresh"
            return {f"sigma_{sigma:g}": (Noise(sigma=sigma, mode=mode, key=key),) for sigma in SIGMAS}  # type: ignore[arg-type]
        if name == "quantize":
            return {f"bits_{bits}": (Quantize(bits=bits),) for bits in BITS}
        if name == "project":
            kept = [max(1, min(width // part, len(self.plain))) for part in WIDTHS]
            return {f"k_{k}": (Project(k=k, reference=self.plain),) for k in kept}
        if name == "budget":
            return {f"share_{100 * share:g}": (Budget(n=self._answers(share)),) for share in SHARES}
        if name == "watermark":
            mark = Watermark(
                key=key,
                egos=self.egos,
                texts=self.texts,
                reference=self.plain,
                encode_text=self.victim.encode_text,
            )
            mark.probes()  # where they cannot be made, no copy need be trained to find out
            return {f"m_{mark.m}": (mark,)}
        return {"labels": (LabelOnly(),)} if name == "label-only" else {"none": ()}

    def _answers(self, share: float) -> int:
        return max(2, round(share * len(self.egos)))

    def _attackers(self, name: str) -> dict[str, Callable[[EmbeddingService], Surrogate]]:
        if name == "label-only":
            found = {NAIVE: self._distil, "distils more labels": lambda service: self._distil(service, FURTHER)}
        elif name == "budget":
            found = {NAIVE: self._within_budget, f"has {ACCOUNTS} accounts": self._accounts}
        else:
            found = {NAIVE: self._regress}
            more = {"asks more": lambda service: self._regress(service, FURTHER)}
            averaging: dict[str, Callable[[EmbeddingService], Surrogate]] = {
                "averages repeats": self._average,
                "averages jittered repeats": lambda service: self._average(service, JITTER),
            }
            denoising = {"takes out noise by PCA": self._denoise}
            found |= {
                "keyed-noise": averaging | denoising | more,
                "fresh-noise": averaging | denoising | more,
                "quantize": denoising | more,
                "project": more,
                "watermark": {"fine-tunes the mark away": self._finetune},
            }.get(name, {})
        return found if self.adaptive else {NAIVE: found[NAIVE]}

    def _service(self, defenses: Sequence[Defense]) -> EmbeddingService:
        return EmbeddingService(self.victim, defenses=defenses, prompts=self.row.queried.prompts)

    def _regress(self, service: EmbeddingService, factor: int = 1) -> Surrogate:
        egos, answers = self._asked(service, factor)
        return self.attack.fit(egos, answers)

    def _distil(self, service: EmbeddingService, factor: int = 1) -> Surrogate:
        egos, labels = self._asked(service, factor)
        attack = HardLabels(**vars(self.attack.config))
        held = Gathered(
            config=attack.config,
            row=self.row,
            egos=egos,
            answers=labels,
            level=service.level,
            dimension=self.plain.shape[1],
            text=self.victim.encode_text,
            show=None,
        )
        copy = attack.copy(held)
        assert isinstance(copy, GraphCopy)
        return copy.encoder

    def _asked(self, service: EmbeddingService, factor: int) -> tuple[EgoGraphs, Tensor]:
        egos, origin = further_queries(self.egos, factor=factor, seed=self.seed)
        texts = [self.texts[place] for place in origin.tolist()]
        return egos, service.answer(egos, texts=texts)

    def _within_budget(self, service: EmbeddingService) -> Surrogate:
        few = slice(service.budget)
        return self.attack.fit(self.egos[few], service.answer(self.egos[few], texts=self.texts[few]))

    def _accounts(self, service: EmbeddingService) -> Surrogate:
        assert service.budget is not None
        within = slice(min(len(self.egos), ACCOUNTS * service.budget))
        clients = [str(number) for number in range(ACCOUNTS)]
        answers = covert_answers(service, self.egos[within], texts=self.texts[within], clients=clients)
        return self.attack.fit(self.egos[within], answers)

    def _average(self, service: EmbeddingService, jitter: float = 0.0) -> Surrogate:
        answers = averaged_answers(service, self.egos, repeats=REPEATS, jitter=jitter, texts=self.texts, seed=self.seed)
        return self.attack.fit(self.egos, answers)

    def _denoise(self, service: EmbeddingService) -> Surrogate:
        return self.attack.fit(self.egos, pca_denoised(service.answer(self.egos, texts=self.texts)))

    def _finetune(self, service: EmbeddingService) -> Surrogate:
        return finetuned(self._regress(service), self.egos, self.victim.encode_text(self.texts))

    def _utility(self, defenses: Sequence[Defense]) -> float:
        """What honest users, each with a few queries, get right."""
        service = EmbeddingService(self.victim, defenses=defenses, prompts=self.row.test.prompts)
        each = service.budget or len(self.place.egos)
        parts = []
        for user, first in enumerate(range(0, len(self.place.egos), each)):
            some = slice(first, first + each)
            parts.append(service.answer(self.place.egos[some], texts=self.place.texts[some], client=str(user)))
        answers = torch.cat(parts)
        return accuracy(answers if service.level == "label" else predict(answers, self.place.prompts), self.place.y)

    def _judged(self, copy: GraphEncoder, queries: int) -> dict[str, Any]:
        found = self.place.measured(encode_egos(copy, self.place.egos))
        return {name: found[name] for name in ("accuracy", "fidelity", "cosine")} | {"queries": queries}

    def _monitored(self) -> Rows:
        """A monitor that cuts a client off at its alarm; whoever is cut off by mistake gets nothing."""
        cells = max(2, min(32, len(self.plain) // 4))
        monitor = QueryMonitor(self.plain, cells=cells, seed=self.seed)
        length = len(self.plain) // 2
        kinds = monitor.assigned(self.plain)
        benign = [
            self.plain[nodes] for nodes in benign_queries(kinds, clients=3 * CLIENTS, queries=length, seed=self.seed)
        ]
        crawling = crawling_queries(len(self.plain), clients=CLIENTS, queries=length, seed=self.seed)
        monitor = monitor.calibrated(benign[: 2 * CLIENTS])
        report = monitor.report(benign[2 * CLIENTS :], [self.plain[nodes] for nodes in crawling])
        utility = self._utility(()) * (1 - report.false_alarm_rate)
        orders = {NAIVE: torch.arange(len(self.egos))}
        if self.adaptive:
            orders["asks topic by topic, under cover"] = self._under_cover(kinds)
        rows: Rows = []
        for attacker, stream in orders.items():
            own = stream < len(self.egos)
            vectors = self.plain[torch.where(own, stream, stream - len(self.egos))]
            alarms = (each.queries for each in monitor.watch(vectors) if monitor.thresholds.exceeded(each))
            alarm = next(alarms, None)
            got = stream[:alarm][own[:alarm]]
            copy = self.attack.fit(self.egos[got], self.plain[got])
            rows.append(
                {"defence": "monitor", "setting": MONITORED, "attacker": attacker, "adaptive": attacker != NAIVE}
                | {"utility": utility}
                | self._judged(copy, len(stream) if alarm is None else alarm)
                | {"alarm": float("nan") if alarm is None else float(alarm)}
                | {"auroc": max(report.auroc.values()), "false_alarms": report.false_alarm_rate}
            )
        return rows

    def _under_cover(self, kinds: Tensor) -> Tensor:
        """[S] an extractor's stream: his queries topic by topic among as many benign ones, which count from Q on."""
        order = topic_order(self.egos, topics=min(8, len(self.egos)), seed=self.seed)
        (cover,) = benign_queries(kinds, clients=1, queries=round(COVER * len(order)), seed=self.seed + 1)
        return torch.stack([order, cover + len(self.egos)], 1).flatten()

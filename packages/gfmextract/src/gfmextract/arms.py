"""What the study measures in one world: surrogates, baselines and controls in each scenario, and every defence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gfmextract.attack import Attack
from gfmextract.audit import Audit, Place
from gfmextract.baselines import HardLabels, OwnPairs, SoftLabels, TextOnly, Untrained
from gfmextract.choices import DEFENSES
from gfmextract.config import BackboneName
from gfmextract.extraction import EmbeddingRegression, PermutedAnswers
from gfmextract.frontier import frontier_points
from gfmextract.metrics import accuracy
from gfmextract.scenarios import Row, Scenario, architecture_mismatch, graph_specific, partial_access, query_budget
from gfmextract.service import EmbeddingService
from gfmextract.zero_shot import predict

if TYPE_CHECKING:
    from aisec_common import TrialLog

    from gfmextract.pyg_graph_clip import GraphClip
    from gfmextract.text_graph import TextGraph

LAYERS: Mapping[BackboneName, int] = {"gps": 3, "sage": 2, "gcn": 2, "gat": 2, "gin": 2, "mlp": 2}
"""Backbones of the attacker and their usual depth; gps of 3 layers is the victim's own architecture."""
BACKBONES = tuple(LAYERS)
DEFENDED = DEFENSES
ARMS = (
    *("victim", "text-only", "untrained"),
    *BACKBONES,
    *("permuted", "hard-label", "soft-label", "own-pairs"),
    *DEFENDED,
)
SCENARIOS = {"s1": "S1, another graph of the domain", "s2": "S2, rest of the graph", "s6": "S6, another domain"}
METRICS = {
    "accuracy": "accuracy",
    "gap": "gap",
    "fidelity": "fidelity",
    "cosine": "cosine",
    "cka": "cka",
    "certified_agreement": "certified",
}
"""Columns of a result, and what the study calls them."""
JUDGED = ("pvalue", "alarm", "auroc", "false_alarms")
"""What some defences are judged by besides the fidelity of copies."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """One seed's victim and the graphs it never saw: the queried one, a sibling of its domain, one of another domain.

    Args:
        seed: of the world, the victim and all attacks.
        victim: pretrained on many small domains of that world.
        queried: A1 of domain A.
        sibling: A2 of the same domain, with other nodes, texts and edges.
        other: B.
        epochs: of every attack.
    """

    seed: int
    victim: GraphClip
    queried: TextGraph
    sibling: TextGraph
    other: TextGraph
    epochs: int

    @classmethod
    def of(cls, seed: int, *, nodes: int, domains: int, victim_epochs: int, epochs: int) -> Bench:
        """Draws the world of a seed and pretrains its victim, or reads it from the cache."""
        from gfmextract.pretraining import PretrainingConfig, pretrain
        from gfmextract.synthetic import World, summaries

        world = World.of(seed)
        graphs = world.pretraining(seed, domains=domains)
        # many domains, each seen a few times: with 60 of them, 12 times, the victim falls to what the texts alone say
        config = PretrainingConfig(epochs=victim_epochs, batch_size=128, feature_mask=0.5, perturbation_steps=0)
        victim = pretrain(graphs, summaries, world.tower, config, seed=seed)
        queried, sibling = world.domain(0, nodes=nodes, copies=2)
        (other,) = world.domain(1, nodes=nodes)
        return cls(seed=seed, victim=victim, queried=queried, sibling=sibling, other=other, epochs=epochs)

    @cached_property
    def places(self) -> dict[str, Place]:
        """Where each scenario is judged."""
        rows = {
            "s1": query_budget(self.queried, (1.0,), test=self.sibling, seed=self.seed),
            "s2": graph_specific(self.queried, seed=self.seed),
            "s6": query_budget(self.queried, (1.0,), test=self.other, seed=self.seed),
        }
        return {name: Place.of(scenario.rows[0], self.victim) for name, scenario in rows.items()}

    def attack(self, arm: str, **changes: Any) -> Attack:
        """The attack of an arm.

        Raises:
            ValueError: for an arm without one.
        """
        settings = {"backbone": "gps", "layers": LAYERS["gps"], "epochs": self.epochs, "seed": self.seed} | changes
        if arm in LAYERS:
            return EmbeddingRegression(**{**settings, "backbone": arm, "layers": LAYERS[arm], **changes})  # type: ignore[index]
        if arm == "own-pairs":
            from gfmextract.synthetic import summaries

            return OwnPairs(summaries=summaries, **settings)
        attacks: dict[str, type[Attack]] = {
            "text-only": TextOnly,
            "untrained": Untrained,
            "permuted": PermutedAnswers,
            "hard-label": HardLabels,
            "soft-label": SoftLabels,
        }
        if arm not in attacks:
            raise ValueError(f"arm must be one of {', '.join([*LAYERS, *attacks, 'own-pairs'])}, not {arm!r}")
        return attacks[arm](**settings)

    def of_victim(self) -> dict[str, float]:
        """The victim's own accuracy in each scenario."""
        return {f"{s}.accuracy": accuracy(predict(p.victim, p.prompts), p.y) for s, p in self.places.items()}

    def attacked(
        self,
        arm: str,
        log: TrialLog,
        *,
        budgets: tuple[float, ...] = (1.0,),
        fractions: tuple[float, ...] = (),
        visible: tuple[float, ...] = (),
        layers: tuple[int, ...] = (),
    ) -> dict[str, float]:
        """The metrics of one attack in S1, S2 and S6 over budgets, in S4 and S5, and at several depths (S3).

        One copy serves S1 and S6: the queries are the same.
        """
        rows = self._rows(budgets, fractions, visible)
        if layers:
            backbones: Any = (arm,)
            depths = architecture_mismatch(
                self.queried, test=self.other, backbones=backbones, layers=layers, seed=self.seed
            )
            rows |= {f"s3.{row.layers}": row for row in depths.rows}
        done = 0

        def show(what: str, step: int, steps: int) -> None:
            nonlocal done
            done += step == steps
            log.progress(done, len(rows))

        scenario = Scenario(name="study", rows=tuple(replace(row, label=key) for key, row in rows.items()))
        service = EmbeddingService(self.victim)
        result = self.attack(arm).run(
            service, scenario, text=self.victim.encode_text, victim_cost=self.victim.cost, show=show
        )
        found: dict[str, float] = {}
        for key, told, copy in zip(rows, result.rows, result.copies, strict=True):
            found |= {f"{key}.{called}": told[name] for name, called in METRICS.items()}
            if key.startswith("s1"):
                place = self.places["s6"]
                vectors = copy.vectors(place.egos, place.texts)
                there = place.measured(vectors)
                found |= {f"s6{key[2:]}.{called}": there[name] for name, called in METRICS.items()}
                if key == "s1":
                    found["flop_ratio"] = told["flop_ratio"]
                    log.sample("cost", **{name: told[name] for name in ("queries", "seconds", "cost_ratio")})
                    self._log_nodes(log, place, vectors)
        return found

    def _rows(
        self, budgets: tuple[float, ...], fractions: tuple[float, ...], visible: tuple[float, ...]
    ) -> dict[str, Row]:
        rows = {}
        for row, share in zip(self._budget(budgets, self.sibling), budgets, strict=True):
            rows[at("s1", share)] = row
        halves = tuple(sorted({1.0, *fractions}))  # S2, and S4 with the other fractions
        for row, share in zip(self._budget(halves, None), halves, strict=True):
            rows[at("s2", share)] = row
        if visible:
            for row, share in zip(partial_access(self.queried, visible, seed=self.seed).rows, visible, strict=True):
                rows[f"s5.{100 * share:g}"] = row
        return rows

    def _budget(self, shares: tuple[float, ...], test: TextGraph | None) -> tuple[Row, ...]:
        return query_budget(self.queried, shares, test=test, seed=self.seed).rows

    def _log_nodes(self, log: TrialLog, place: Place, vectors: Tensor) -> None:
        told = (place.y, predict(place.victim, place.prompts), predict(vectors, place.prompts))
        for node, (y, victim, copy) in enumerate(zip(*(each.tolist() for each in told), strict=True)):
            log.sample(f"s6.{node}", y=y, victim=victim, copy=copy)

    @cached_property
    def audit(self) -> Audit:
        """The defences, each queried on A1 and judged on B, by sage surrogates."""
        (row,) = query_budget(self.queried, (1.0,), test=self.other, seed=self.seed).rows
        attack = self.attack("sage")
        assert isinstance(attack, EmbeddingRegression)
        return Audit(victim=self.victim, row=row, attack=attack, seed=self.seed)

    def defended(self, arm: str, log: TrialLog) -> dict[str, float]:
        """Every setting of one defence: SETTING.utility, .fidelity, .adaptive and what else it is judged by."""
        rows = self.audit.rows(arm, show=lambda what, done, total: log.progress(done, total))
        found: dict[str, float] = {}
        for (_, setting), (utility, naive, best) in frontier_points(rows).items():
            found |= {f"{setting}.utility": utility, f"{setting}.fidelity": naive, f"{setting}.adaptive": best}
        for row in rows:
            log.sample(f"{row['setting']}, {row['attacker']}", **row)
            kind = "adaptive_" if row["adaptive"] else ""
            found |= {f"{row['setting']}.{kind}{name}": row[name] for name in JUDGED if name in row}
        return found


def at(scenario: str, share: float) -> str:
    """How metrics name a scenario with a share of its nodes queried; all of them go without saying.

    >>> at("s6", 0.05), at("s6", 1.0)
    ('s6.5', 's6')
    """
    return scenario if share == 1 else f"{scenario}.{100 * share:g}"

"""A victim with a real text tower: pretrained on import graphs of some packages, copied on others it never saw.

Whether it reads an unseen graph better than the texts of the nodes alone is measured first: where it does not, nothing
follows from how well it is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from aisec_common.stats import PairedMean
from torch import Tensor

from gfmextract.audit import Place
from gfmextract.baselines import TextOnly, Untrained
from gfmextract.extraction import EmbeddingRegression, PermutedAnswers
from gfmextract.real_comparison import BASELINES, Cell, Recipe, Show, cells_of
from gfmextract.scenarios import Neighbourhood, Row, Scenario, query_budget
from gfmextract.service import EmbeddingService
from gfmextract.zero_shot import predict

if TYPE_CHECKING:
    from gfmextract.attack import Attack
    from gfmextract.pyg_graph_clip import GraphClip
    from gfmextract.text_graph import TextGraph
    from gfmextract.victim import Victim

TOWER = "all-minilm-l6-v2"
BACKBONES = ("gps", "sage")
ALSO_UNSEEN = ("numpy", "torch")
"""Further packages that the victim is judged and copied on: those of our own dependencies with four subpackages and at
most 1,500 modules that neither the pretraining nor the choice of the recipe saw. One graph is one draw."""
MEASURED = (
    *("fidelity", "accuracy", "victim_accuracy", "cosine", "cka", "certified_agreement", "cost_ratio", "queries"),
    *("seconds", "gain", "gain_low", "gain_high", "neighbours_accuracy", "nodes"),
)
"""What a record keeps of a row; the last five where texts alone are judged on a whole graph."""
LEVEL = 0.95
"""Of the intervals of what the victim gains over texts alone, all unseen packages together (Bonferroni)."""


def minilm_victim(recipe: Recipe, show: Show | None = None) -> tuple[GraphClip, dict[str, TextGraph]]:
    """The victim, pretrained on import graphs, and the graphs it is attacked on by name; kept in the user's cache."""
    from gfmextract.hf_text_tower import load_text_tower
    from gfmextract.import_graph import module_graph, module_summaries
    from gfmextract.pretraining import PretrainingConfig, pretrain

    tower = load_text_tower(TOWER)
    attacked = (recipe.unseen, *ALSO_UNSEEN, recipe.related)
    names = dict.fromkeys((*recipe.pretraining, *attacked))
    graphs = {}
    for done, name in enumerate(names):
        if show is not None:
            show("import graphs", done, len(names))
        graphs[name] = module_graph(name, tower.encode, least=recipe.least)
    if show is not None:
        show("import graphs", len(names), len(names))
    config = PretrainingConfig(epochs=recipe.epochs, perturbation_steps=0)
    learned = [graphs[name] for name in recipe.pretraining]
    victim = pretrain(learned, module_summaries, tower, config, seed=0, show=show)
    return victim, {name: graphs[name] for name in attacked}


def minilm(recipe: Recipe, seeds: int, show: Show | None) -> tuple[list[Cell], Callable[[Cell], dict[str, Any]]]:
    """Every copy of the victim, and what measures one.

    Of each unseen graph half is asked and the rest judged (S2, S4); or a graph of the pretraining is asked and the
    whole unseen one judged (S6), where the text-only row also tells what the victim gains, see `gain_over_text`.
    """
    victim, graphs = minilm_victim(recipe, show)
    related = graphs[recipe.related]
    unseen = [graphs[name] for name in (recipe.unseen, *ALSO_UNSEEN)]
    within: dict[str, tuple[TextGraph, TextGraph | None]] = {graph.name: (graph, None) for graph in unseen}
    across = {f"{related.name} to {graph.name}": (related, graph) for graph in unseen}
    tests = within | across
    around = Neighbourhood(positions=victim.config.positions)
    level = 1 - (1 - LEVEL) / len(unseen)

    @cache
    def extracted(sources: tuple[str, ...], attacker: str, budget: float, seed: int) -> dict[str, dict[str, Any]]:
        """Rows of a result by source: what is asked is the same in all, and so is the copy."""
        rows = {}
        for source in sources:
            asked, test = tests[source]
            (row,) = query_budget(asked, (budget / 100,), test=test, seed=seed, neighbourhood=around).rows
            rows[source] = replace(row, label=source)
        settings = recipe.copies("gps", 3, seed)
        attacks: dict[str, Attack] = {
            "gps": EmbeddingRegression(**settings),
            "sage": EmbeddingRegression(**recipe.copies("sage", 2, seed)),
            "permuted": PermutedAnswers(**settings),
            "untrained": Untrained(**settings),
            "text-only": TextOnly(**settings),
        }
        result = attacks[attacker].run(
            EmbeddingService(victim),
            Scenario(name=TOWER, rows=tuple(rows.values())),
            text=victim.encode_text,
            victim_cost=victim.cost,
        )
        found = dict(zip(rows, result.rows, strict=True))
        if attacker == "text-only" and sources == tuple(across):
            found = {source: told | gain_over_text(victim, rows[source], level=level) for source, told in found.items()}
        return found

    def measured(cell: Cell) -> dict[str, Any]:
        sources = tuple(across) if cell.source in across else (cell.source,)
        told = extracted(sources, cell.attacker, cell.budget, cell.seed)[cell.source]
        return {name: told[name] for name in MEASURED if name in told}

    budgets = [100 * share for share in recipe.fractions]
    return cells_of(dict.fromkeys(tests, budgets), BACKBONES, (*BASELINES, "text-only"), seeds), measured


def gain_over_text(victim: Victim, row: Row, *, level: float) -> dict[str, float]:
    """What a victim's zero-shot accuracy gains over that of the texts alone, and what texts of neighbours would.

    Args:
        victim: whose text tower made the features of the graph.
        row: on whose test both are judged.
        level: of the two-sided interval, paired over nodes.

    Returns:
        gain, gain_low, gain_high: victim minus root texts, with its interval. neighbours_accuracy: of the untrained
        mean of the text vectors of an ego graph, which tells how much the graph holds. nodes: how many.

    Source: ours; the validity of a victim asks for a gain.
    """
    place = Place.of(row, victim)
    right = predict(place.victim, place.prompts) == place.y
    alone = predict(place.egos.x[place.egos.start[:-1]], place.prompts) == place.y
    gains = PairedMean((right.double() - alone.double()).tolist())
    low, high = gains.interval(level)
    averaged = predict(_means(place.egos.x, place.egos.start), place.prompts) == place.y
    return {
        "gain": gains.mean,
        "gain_low": low,
        "gain_high": high,
        "neighbours_accuracy": averaged.double().mean().item(),
        "nodes": len(place.y),
    }


def _means(x: Tensor, start: Tensor) -> Tensor:
    """[G, F] means of the rows start[g]..start[g + 1] - 1 of x."""
    sizes = start.diff()
    owner = torch.arange(len(sizes)).repeat_interleave(sizes)
    return torch.zeros(len(sizes), x.shape[1]).index_add_(0, owner, x) / sizes.unsqueeze(1)

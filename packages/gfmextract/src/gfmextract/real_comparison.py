"""Attacks on models that were not made for the occasion: FoToM as it was published, and a victim that reads MiniLM.

FoToM embeds the shape of a graph and has no texts. It is copied on graphs of four random kinds and on import graphs of
Python packages, and copies are judged by the cosine to its vectors and by how often a logistic probe, trained on its
vectors, says the same of both. The other victim reads texts through MiniLM, see `gfmextract.real_victim`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from aisec_common.seeding import torch_rng
from torch import Tensor
from torch.nn.functional import normalize

from gfmextract.extraction import EmbeddingRegression, PermutedAnswers
from gfmextract.metrics import linear_cka, mean_cosine
from gfmextract.pyg_ego import EgoGraphs, ego_graphs
from gfmextract.records import recorded
from gfmextract.surrogate import fresh_surrogate
from gfmextract.victim import encode_egos

if TYPE_CHECKING:
    from gfmextract.surrogate import Surrogate
    from gfmextract.text_graph import TextGraph
    from gfmextract.victim import GraphEncoder

VictimName = Literal["fotom", "minilm"]
Show = Callable[[str, int, int], None]
FOTOM_BACKBONES = ("gin", "sage")
BASELINES = ("permuted", "untrained")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Sizes of the comparison; the defaults are those of the records.

    Args:
        budgets: queries to FoToM, as far as a source has so many.
        tests: graphs that copies of FoToM are judged on.
        probes: further graphs that the probe is trained on.
        hops, cap: of the ego graphs that FoToM is asked about.
        queried: package whose import graph is asked about with FoToM.
        elsewhere: package that such copies are also judged on.
        pretraining: packages that the MiniLM victim learns from.
        unseen: package that it is copied on, besides those of `real_victim.ALSO_UNSEEN`.
        related: package of the pretraining from which copies are also made (S6).
        least: modules that a subpackage must have to be a class.
        epochs: of that pretraining.
        fractions: budgets in shares of the nodes (S4).
        copy_epochs, copy_steps: of every copy, see `ExtractionConfig.epochs` and `min_steps`.
    """

    budgets: tuple[int, ...] = (10, 30, 100, 300, 1000)
    tests: int = 400
    probes: int = 400
    hops: int = 2
    cap: int = 24
    queried: str = "scipy"
    elsewhere: str = "scikit-learn"
    pretraining: tuple[str, ...] = ("scipy", "pandas", "matplotlib", "networkx", "torch-geometric", "sympy")
    unseen: str = "scikit-learn"
    related: str = "scipy"
    least: int = 8
    epochs: int = 20
    fractions: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 1.0)
    copy_epochs: int = 30
    copy_steps: int = 200

    def copies(self, backbone: str, layers: int, seed: int) -> dict[str, Any]:
        """Settings of a copy's training."""
        settings = {"epochs": self.copy_epochs, "min_steps": self.copy_steps, "seed": seed}
        return {"backbone": backbone, "layers": layers, **settings}


@dataclass(frozen=True, eq=False)
class Source:
    """Graphs that FoToM is asked about, and labelled ones that copies are judged on.

    Args:
        name: as tables have it.
        queries: to draw from.
        tests: to judge on.
        probes: labelled graphs of the kind of `tests`, on which the probe is trained.
        labels, probe_labels: classes of tests and probes.
    """

    name: str
    queries: EgoGraphs
    tests: EgoGraphs
    probes: EgoGraphs
    labels: Tensor
    probe_labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One copy: where it was made and judged, by whom, with how many queries (a share in percent for MiniLM)."""

    source: str
    attacker: str
    budget: float
    seed: int

    @property
    def file(self) -> str:
        """Name of its record."""
        return f"{self.source.replace(' ', '-')}-{self.attacker}-{self.budget:g}-{self.seed}.json"


def compare(
    victim: VictimName, out: Path, *, seeds: int = 3, recipe: Recipe | None = None, show: Show | None = None
) -> list[dict[str, Any]]:
    """Makes every copy; one whose record is on disk is not made again.

    Args:
        victim: fotom or minilm.
        out: folder; records go to `out/runs`.
        seeds: repetitions of each.
        recipe: sizes.
        show: called as `show(what, done, total)`.

    Returns:
        The records.

    Raises:
        ValueError: for an unknown victim.
        FileNotFoundError: for a checkpoint that has not been fetched.
    """
    recipe = recipe or Recipe()
    if victim not in ("fotom", "minilm"):
        raise ValueError(f"victim must be fotom or minilm, not {victim!r}")
    if victim == "fotom":
        cells, measured = _fotom(recipe, seeds)
    else:
        from gfmextract.real_victim import minilm  # which takes cells from here

        cells, measured = minilm(recipe, seeds, show)
    records = []
    for done, cell in enumerate(cells):
        if show is not None:
            show(f"copies of {victim}", done, len(cells))
        about = {"victim": victim, **vars(cell), **vars(recipe)}
        records.append(recorded(out / "runs" / cell.file, about, partial(measured, cell)))
    if show is not None:
        show(f"copies of {victim}", len(cells), len(cells))
    return records


def cells_of(
    budgets: Mapping[str, Sequence[float]], backbones: Sequence[str], baselines: Sequence[str], seeds: int
) -> list[Cell]:
    """Every backbone at every budget of a source; baselines at the largest."""
    return [
        Cell(source=source, attacker=attacker, budget=budget, seed=seed)
        for source, each in budgets.items()
        for attacker in (*backbones, *baselines)
        for budget in (each if attacker in backbones else each[-1:])
        for seed in range(seeds)
    ]


def _fotom(recipe: Recipe, seeds: int) -> tuple[list[Cell], Callable[[Cell], dict[str, Any]]]:
    from gfmextract.pyg_fotom import load_fotom

    victim = load_fotom()
    sources = {source.name: source for source in fotom_sources(recipe)}
    judges = {name: Judge.of(victim, source) for name, source in sources.items()}

    def measured(cell: Cell) -> dict[str, Any]:
        source = sources[cell.source]
        order = torch.randperm(len(source.queries), generator=torch_rng(cell.seed, "queries"))
        egos = source.queries[order[: int(cell.budget)]]
        backbone = cell.attacker if cell.attacker in FOTOM_BACKBONES else FOTOM_BACKBONES[0]
        settings = recipe.copies(backbone, 3, cell.seed) | {"normalize_targets": True}
        attack = (PermutedAnswers if cell.attacker == "permuted" else EmbeddingRegression)(**settings)
        seen, answers = shapes(egos), encode_egos(victim, egos)
        untrained = cell.attacker == "untrained"
        copy = fresh_surrogate(attack.config, seen, answers.shape[1]) if untrained else attack.fit(seen, answers)
        return judges[cell.source].measured(copy) | {"queries": len(egos), "seconds": copy.cost.seconds}

    budgets = {
        name: sorted({min(budget, len(source.queries)) for budget in recipe.budgets})
        for name, source in sources.items()
    }
    return cells_of(budgets, FOTOM_BACKBONES, BASELINES, seeds), measured


def fotom_sources(recipe: Recipe) -> list[Source]:
    """Four kinds of random graphs; two of them with the others to judge on; import graphs, the same and another."""
    from gfmextract.import_graph import module_graph
    from gfmextract.pyg_topologies import KINDS, topologies

    most, kinds = max(recipe.budgets), len(KINDS)
    tests, labels = topologies(1, each=recipe.tests // kinds)
    probes, probe_labels = topologies(2, each=recipe.probes // kinds)
    mixed, _ = topologies(0, each=-(-most // kinds))
    some, _ = topologies(0, each=-(-most // 2), kinds=KINDS[:2])
    found = [
        Source("four kinds", mixed, tests, probes, labels, probe_labels),
        Source("two kinds to four", some, tests, probes, labels, probe_labels),
    ]
    first, second = (module_graph(name, _no_text, least=recipe.least) for name in (recipe.queried, recipe.elsewhere))
    order = torch.randperm(len(first), generator=torch_rng(0, "modules"))
    half = len(order) // 2
    for graph, nodes, name in (
        (first, order[half:], recipe.queried),
        (second, torch.arange(len(second)), f"{recipe.queried} to {recipe.elsewhere}"),
    ):
        mixed_nodes = nodes[torch.randperm(len(nodes), generator=torch_rng(0, "judged"))]
        middle = len(mixed_nodes) // 2
        judged, probed = mixed_nodes[:middle][: recipe.tests], mixed_nodes[middle:][: recipe.probes]
        queries = first, order[:half] if graph is first else order
        found.append(
            Source(
                name,
                queries=_around(recipe, *queries),
                tests=_around(recipe, graph, judged),
                probes=_around(recipe, graph, probed),
                labels=graph.y[judged],
                probe_labels=graph.y[probed],
            )
        )
    return found


def _no_text(texts: list[str]) -> Tensor:
    """FoToM reads no features."""
    return torch.ones(len(texts), 1)


def _around(recipe: Recipe, graph: TextGraph, nodes: Tensor) -> EgoGraphs:
    return ego_graphs(graph, nodes, hops=recipe.hops, cap=recipe.cap)


def shapes(egos: EgoGraphs) -> EgoGraphs:
    """Ego graphs with features that any attacker can read off them: a constant, degree and size.

    >>> from gfmextract.pyg_topologies import topologies
    >>> shapes(topologies(0, each=1)[0]).x.shape
    torch.Size([120, 3])
    """
    sizes = egos.start.diff()
    owner = torch.arange(len(egos)).repeat_interleave(egos.edge_start.diff())
    ends = egos.edge_index[1] + egos.start[owner]
    degree = torch.bincount(ends, minlength=len(egos.x)).float()
    size = sizes.repeat_interleave(sizes).float()
    return replace(egos, x=torch.stack([torch.ones(len(degree)), degree.log1p(), size.log()], 1))


@dataclass(frozen=True, eq=False)
class Judge:
    """What copies of FoToM are judged by on one source: its vectors, and a logistic probe trained on others of them."""

    tests: EgoGraphs
    victim: Tensor
    said: Tensor
    labels: Tensor
    probe: Any

    @classmethod
    def of(cls, victim: GraphEncoder, source: Source) -> Judge:
        """Trains the probe on directions alone: the length of a vector is mostly the size of its graph."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        seen, vectors = encode_egos(victim, source.probes), encode_egos(victim, source.tests)
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        probe.fit(normalize(seen).double().numpy(), source.probe_labels.numpy())
        said = torch.from_numpy(probe.predict(normalize(vectors).double().numpy()))
        return cls(source.tests, vectors, said, source.labels, probe)

    def measured(self, copy: Surrogate) -> dict[str, float]:
        """Fidelity (agreement of the probe), accuracy of the probe on both, cosine and CKA of a copy."""
        vectors = encode_egos(copy, shapes(self.tests))
        said = torch.from_numpy(self.probe.predict(normalize(vectors).double().numpy()))
        return {
            "fidelity": _share(said == self.said),
            "accuracy": _share(said == self.labels),
            "victim_accuracy": _share(self.said == self.labels),
            "cosine": mean_cosine(vectors, self.victim),
            "cka": linear_cka(vectors, self.victim),
        }


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())

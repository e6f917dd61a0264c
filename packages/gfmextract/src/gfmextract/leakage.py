"""The audit of one model: how much leaks in each scenario, and what each defence costs whom, in one page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from aisec_common.files import write_atomic
from aisec_common.report import STYLE
from aisec_common.table import markdown

from gfmextract import scenarios as builders
from gfmextract.answer_cache import Remembered
from gfmextract.audit import Audit
from gfmextract.baselines import TextOnly
from gfmextract.choices import DEFENSES, SCENARIOS, UnfitDefense
from gfmextract.extraction import EmbeddingRegression, PermutedAnswers
from gfmextract.frontier import frontier_figure, frontier_points, protected_area
from gfmextract.records import RowKeeper, Rows
from gfmextract.scenarios import Neighbourhood, Row, Scenario
from gfmextract.service import EmbeddingService

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from gfmextract.attack import Attack
    from gfmextract.cost import Cost
    from gfmextract.text_graph import TextGraph
    from gfmextract.victim import Victim

ABOVE_TEXT = 0.04
"""How much more accurate than the texts alone a victim must be for its leakage to mean something."""
AROUND = Neighbourhood()
ON_ONE_GRAPH: Mapping[str, Callable[..., Scenario]] = {
    "graph-specific": builders.graph_specific,
    "query-budget": builders.query_budget,
    "partial-access": builders.partial_access,
}
Show = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class LeakageReport:
    """What leaked in every scenario, and what every defence changed.

    Args:
        leaks: a row for each surrogate, see `ExtractionResult.table`.
        defenses: a row for each setting of a defence, see `Audit.rows`.
        left_out: scenarios and defences that were asked for and could not be run with these graphs, with the reason.
        warnings: what a reader has to know before the numbers.
        header: what was attacked, and how.
    """

    leaks: tuple[Mapping[str, Any], ...]
    defenses: tuple[Mapping[str, Any], ...]
    left_out: Mapping[str, str]
    warnings: tuple[str, ...]
    header: str

    def table(self) -> pd.DataFrame:
        """One row a surrogate: scenario, row, attack, queries, accuracy, gap, fidelity and the rest."""
        import pandas as pd

        return pd.DataFrame(list(self.leaks))

    def defense_table(self) -> pd.DataFrame:
        """One row a setting of a defence: utility, fidelity, the adaptive attacker's, and what else judges it."""
        import pandas as pd

        return pd.DataFrame(list(self.defenses))

    def figure(self) -> Figure:
        """Utility left to honest users against fidelity, naive (hollow) and adaptive (filled)."""
        return frontier_figure(self.defenses)

    @property
    def protected(self) -> tuple[float, float]:
        """`protected_area` of all settings, with extractors who know no defence, and with those who do."""
        points = frontier_points(self.defenses).values()
        naive = [(utility, fidelity) for utility, fidelity, _ in points]
        return protected_area(naive), protected_area((utility, best) for utility, _, best in points)

    def budget_figure(self) -> Figure | None:
        """Fidelity against answered queries, a line a graph; None where the scenario was not run."""
        from matplotlib.figure import Figure

        rows = [row for row in self.leaks if row["scenario"] == "query-budget" and row["attack"] != TextOnly.name]
        if not rows:
            return None
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.subplots()
        for number, graph in enumerate(dict.fromkeys(row["queried"] for row in rows)):
            for attack, style in ((EmbeddingRegression.name, "o-"), (PermutedAnswers.name, "x:")):
                points = sorted(
                    (row["queries"], row["fidelity"])
                    for row in rows
                    if row["queried"] == graph and row["attack"] == attack
                )
                if points:
                    axes.plot(*zip(*points, strict=True), style, color=f"C{number}", label=f"{graph}, {attack}")
        axes.set(xlabel="answered queries", ylabel="agreement with the victim", xscale="log", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        return figure

    def to_markdown(self) -> str:
        """Header, warnings and both tables."""
        parts = [self.header, *(f"Warning: {line}" for line in self.warnings)]
        parts += [f"Left out: {name}: {reason}" for name, reason in self.left_out.items()]
        parts += self._protected()
        parts += [markdown(*_cells(rows)) for rows in (self.leaks, self.defenses) if rows]
        return "\n\n".join(parts) + "\n"

    def _protected(self) -> list[str]:
        if not self.defenses:
            return []
        naive, adaptive = self.protected
        return [
            f"Area that all settings reach together in utility x (1 - fidelity): {naive:.3f} against extractors who "
            f"take answers as they come, {adaptive:.3f} against those who know the defence."
        ]

    def save(self, file: str | Path) -> None:
        """Writes the report as one HTML page that needs nothing else: figures first, then tables."""
        drawn = [("Fidelity against the budget", self.budget_figure())]
        if self.defenses:
            drawn.insert(0, ("Utility against fidelity", self.figure()))
        parts = [f"<h1>What leaks</h1>\n<p>{escape(self.header)}</p>"]
        parts += [f"<p><b>Warning:</b> {escape(line)}</p>" for line in self.warnings]
        parts += [_image(title, figure) for title, figure in drawn if figure is not None]
        parts += [f"<p>Left out: {escape(name)}: {escape(reason)}</p>" for name, reason in self.left_out.items()]
        parts += [f"<p>{escape(line)}</p>" for line in self._protected()]
        for title, rows in (("Scenarios", self.leaks), ("Defences", self.defenses)):
            if rows:
                parts.append(f"<h2>{title}</h2>\n{_html(*_cells(rows))}")
        body = "\n".join(parts)
        page = (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>Leakage report</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
        )
        write_atomic(Path(file), page)


def leakage_report(
    victim: Victim,
    graphs: Sequence[TextGraph],
    *,
    scenarios: Literal["all"] | Sequence[str] = "all",
    defenses: Literal["all"] | Sequence[str] = "all",
    adaptive: bool = True,
    attack: EmbeddingRegression | None = None,
    neighbourhood: Neighbourhood = AROUND,
    victim_cost: Cost | None = None,
    seed: int = 0,
    keep: Path | None = None,
    show: Show | None = None,
) -> LeakageReport:
    """Extracts a model in every scenario that the graphs allow, and again through every defence.

    Graphs with the same classes are of one domain. S1 needs two of a domain, S6 two domains; the others run on each
    graph, S3 on the first. Beside the attack each row, but for those of S3, has text alone (what a victim must beat)
    and permuted answers (what a copy must beat). Defences are judged on another graph than the queried one, where there
    is one. The victim is asked about each subgraph and each text once.

    Args:
        victim: any object with `encode_graph` and `encode_text`; nothing else of it is read.
        graphs: to query and to test on, with different names.
        scenarios: "all", or some of `SCENARIOS`.
        defenses: "all", or some of `DEFENSES`; empty for none.
        adaptive: whether attackers who know the defence are run too; a table without them is misleading.
        attack: `EmbeddingRegression(backbone="sage", layers=2)` by default.
        neighbourhood: of the submitted ego graphs.
        victim_cost: of the victim's training, for the cost ratios.
        seed: of splits, queries and keys.
        keep: folder in which every finished row, and every answer of a victim that is a module, is kept: who calls
            again with the same arguments gets them from there. A module is known by its weights and by what it is
            printed as, not by its code; any other victim by its answers. None keeps nothing.
        show: progress, as `aisec_common.progress.counting` gives it.

    Returns:
        The report; `save` writes it.

    Raises:
        ValueError: for an unknown scenario or defence, no graph, or two graphs of one name.

    >>> leakage_report(None, [])
    Traceback (most recent call last):
    ValueError: graphs is empty: give at least one

    Source: arXiv 2511.11912, the six scenarios; the report, baselines and defences are ours.
    """
    attack = attack or EmbeddingRegression(backbone="sage", layers=2, seed=seed)
    planned, left_out = planned_scenarios(graphs, scenarios, neighbourhood=neighbourhood, seed=seed)
    wanted = DEFENSES if defenses == "all" else tuple(defenses)
    if unknown := [name for name in wanted if name not in DEFENSES]:
        raise ValueError(f"defenses must be of {', '.join(DEFENSES)}, not {unknown[0]!r}")
    settings = vars(attack.config)
    beside = (attack, PermutedAnswers(**settings), TextOnly(**settings))
    remembered = Remembered(victim, keep and keep / "answers")
    keeper = RowKeeper(shared={})
    if keep is not None:
        egos = (neighbourhood.of(graph, torch.arange(len(graph))) for graph in graphs)
        shared = {
            "victim": remembered.hash(egos, [prompt for graph in graphs for prompt in graph.prompts]),
            "victim_cost": victim_cost and vars(victim_cost),
            "neighbourhood": vars(neighbourhood),
            "seed": seed,
            "config": settings,
        }
        keeper = RowKeeper(folder=keep / "runs", shared=shared)
    leaks: Rows = []
    copies = [
        (scenario, which, row)
        for scenario in planned
        for which in (beside[:1] if scenario.name == "architecture-mismatch" else beside)
        for row in scenario.rows
    ]
    for done, (scenario, which, row) in enumerate(copies):
        if show is not None:
            show("scenarios", done, len(copies))
        about = {"scenario": scenario.name, "row": row.label, "attack": which.name, **_graphs_of(row)}
        alone = replace(scenario, rows=(row,))
        leaks += keeper.rows(scenario.name, about, partial(_leaks, which, alone, remembered, victim_cost))
    if show is not None:
        show("scenarios", len(copies), len(copies))
    defended: Rows = []
    if wanted:
        row = judged_row(graphs, neighbourhood=neighbourhood, seed=seed)
        audit = Audit(victim=remembered, row=row, attack=attack, seed=seed, adaptive=adaptive)
        for name in ("none", *wanted):
            about = {"defence": name, "adaptive": adaptive} | _graphs_of(row)
            try:
                defended += audit.rows(name, show=show, keep=partial(_kept_setting, keeper, about))
            except UnfitDefense as error:
                left_out[f"defence {name}"] = str(error)
    return LeakageReport(
        leaks=tuple(leaks),
        defenses=tuple(defended),
        left_out=left_out,
        warnings=tuple(_warnings(leaks, adaptive=adaptive or not wanted)),
        header=(
            f"{type(victim).__name__} on {', '.join(graph.name for graph in graphs)}; {attack.name}, backbone "
            f"{attack.config.backbone} of {attack.config.layers} layers, seed {seed}."
        ),
    )


def planned_scenarios(
    graphs: Sequence[TextGraph],
    names: Literal["all"] | Sequence[str] = "all",
    *,
    neighbourhood: Neighbourhood = AROUND,
    seed: int = 0,
) -> tuple[list[Scenario], dict[str, str]]:
    """The scenarios that can be run with some graphs, and those that cannot, with the reason.

    Raises:
        ValueError: for no graph, two of one name, or an unknown scenario.
    """
    if not graphs:
        raise ValueError("graphs is empty: give at least one")
    called = [graph.name for graph in graphs]
    if twice := next((name for name in called if called.count(name) > 1), None):
        raise ValueError(f"graphs has two of the name {twice!r}: tell them apart")
    wanted: Sequence[str] = SCENARIOS if names == "all" else names
    if unknown := [name for name in wanted if name not in SCENARIOS]:
        raise ValueError(f"scenarios must be of {', '.join(SCENARIOS)}, not {unknown[0]!r}")
    domains = domains_of(graphs)
    planned: list[Scenario] = []
    left_out: dict[str, str] = {}
    for name in wanted:
        if name == "domain-level":
            pairs = [each for each in domains.values() if len(each) > 1]
            planned += [builders.domain_level(each, neighbourhood=neighbourhood) for each in pairs]
            if not pairs:
                left_out[name] = "no two graphs have the same classes"
        elif name == "data-discrepancy":
            if len(domains) < 2:
                left_out[name] = "all graphs have the same classes"
            else:
                planned.append(builders.data_discrepancy(domains, neighbourhood=neighbourhood))
        elif name == "architecture-mismatch":
            planned.append(builders.architecture_mismatch(graphs[0], seed=seed, neighbourhood=neighbourhood))
        else:
            build = ON_ONE_GRAPH[name]
            for graph in graphs:
                try:
                    planned.append(build(graph, seed=seed, neighbourhood=neighbourhood))
                except ValueError as error:  # a graph too small for its smallest share
                    left_out[f"{name} of {graph.name}"] = str(error)
    return planned, left_out


def _leaks(attack: Attack, scenario: Scenario, victim: Victim, victim_cost: Cost | None) -> Rows:
    return list(attack.run(EmbeddingService(victim), scenario, text=victim.encode_text, victim_cost=victim_cost).rows)


def _kept_setting(keeper: RowKeeper, about: Mapping[str, Any], setting: str, make: Callable[[], Rows]) -> Rows:
    return keeper.rows(f"defence {about['defence']} {setting}", {**about, "setting": setting}, make)


def _graphs_of(row: Row) -> dict[str, Any]:
    return {"queried": row.queried.hash, "test": row.test.hash}


def domains_of(graphs: Sequence[TextGraph]) -> dict[str, list[TextGraph]]:
    """Graphs by their classes; a domain is called by its first graph."""
    found: dict[tuple[str, ...], list[TextGraph]] = {}
    for graph in graphs:
        found.setdefault(tuple(graph.classes), []).append(graph)
    return {each[0].name: each for each in found.values()}


def judged_row(graphs: Sequence[TextGraph], *, neighbourhood: Neighbourhood, seed: int) -> Row:
    """Where defences are judged: all of the first graph is asked, tested is one of another domain, else of the same.

    With one graph alone it is a half that is asked and a half that is tested.
    """
    queried, *rest = graphs
    elsewhere = [graph for graph in rest if tuple(graph.classes) != tuple(queried.classes)] or rest
    test = elsewhere[0] if elsewhere else None
    (row,) = builders.query_budget(queried, (1.0,), test=test, seed=seed, neighbourhood=neighbourhood).rows
    return row


def _warnings(leaks: Sequence[Mapping[str, Any]], *, adaptive: bool) -> list[str]:
    said = []
    texts = {(row["queried"], row["test"], row["row"]): row for row in leaks if row["attack"] == TextOnly.name}
    weak = sorted({row["test"] for row in texts.values() if row["victim_accuracy"] - row["accuracy"] < ABOVE_TEXT})
    if weak:
        said.append(
            f"on {', '.join(weak)} the victim is less than {ABOVE_TEXT:g} more accurate than the root's text alone: "
            "a high fidelity there proves nothing"
        )
    if not adaptive:
        said.append("adaptive attackers were left out: a defence may look better than it is")
    return said


def _cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [[_cell(row.get(name)) for name in columns] for row in rows]


def _cell(value: object) -> str:
    if value is None or value != value:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _html(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}\n</table></div>'


def _image(title: str, figure: Figure) -> str:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    return f'<img alt="{escape(title)}" src="data:image/png;base64,{base64.b64encode(drawn.getvalue()).decode()}">'

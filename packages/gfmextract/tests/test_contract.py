from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import torch
from aisec_common.testing import RoomContract
from linear_victims import LinearVictim, egos_of, worded_graph
from small_graphs import made_graph

from gfmextract import (
    EmbeddingRegression,
    EmbeddingService,
    TextGraph,
    defenses,
    ego_graphs,
    leakage_report,
    module_graph,
    scenarios,
)
from gfmextract.arms import SCENARIOS, at
from gfmextract.graph_file import load_graph
from gfmextract.jobs import AuditJob
from gfmextract.pyg_topologies import topologies
from gfmextract.real_comparison import compare
from gfmextract.study import BUDGETS, STUDY
from gfmextract.surrogate import Surrogate
from gfmextract.synthetic import World
from gfmextract.victim import encode_egos
from gfmextract.zero_shot import predict

GRAPH = worded_graph(nodes=20)
EGOS = egos_of(GRAPH)
NAN = SimpleNamespace(encode_graph=lambda batch: torch.full((len(batch.ptr) - 1, 2), torch.nan))


def graph(**changes):
    given = {"name": "g", "x": torch.eye(2), "edge_index": torch.tensor([[0], [1]]), "texts": ("a", "b")}
    return TextGraph(**(given | {"y": torch.tensor([0, 1]), "classes": ("one", "two")} | changes))


def service(**settings):
    return EmbeddingService(LinearVictim(), **settings)


def plants():
    """What moves the claims that have an effect of their own."""
    whole = {f"{scenario}.fidelity": (0.5, 100.0) for scenario in SCENARIOS}
    grown = [
        {f"{at('s6', low)}.fidelity": (0.5, 0.0), f"{at('s6', high)}.fidelity": (0.5, 100.0)}
        for low, high in pairwise(BUDGETS)
    ]
    own = [claim.text for claim in STUDY.claims if claim.effect]
    third = [text for text in own if text.startswith("(3)")]
    return {text: whole for text in own if text not in third} | dict(zip(third, grown, strict=True))


class TestContract(RoomContract):
    room = "gfmextract"
    wrong_inputs = (
        # row 12 of the acceptance table: empty edge set, features that do not fit, one class
        (lambda: graph(edge_index=torch.zeros(2, 0, dtype=torch.int64)), "at least one edge"),
        (lambda: graph(x=torch.tensor([[1.0], [torch.nan]])), "node 1"),
        (lambda: graph(classes=("one",)), "classes"),
        (lambda: predict(torch.eye(2), torch.ones(1, 2)), "two classes"),
        (lambda: predict(torch.eye(2), torch.eye(3)), "of one d"),
        # rows 4 and 7: budgets and response levels
        (lambda: service(budget=3).answer(EGOS), "egos holds 20 queries"),
        (
            lambda: EmbeddingRegression().run(
                service(level="label", prompts=GRAPH.prompts), scenarios.graph_specific(GRAPH), text=None
            ),
            "level",
        ),
        (lambda: service(level="scores"), "prompts"),
        (lambda: service(level="nosuch"), "level"),
        (lambda: defenses.Noise(sigma=-1.0), "sigma"),
        (lambda: defenses.Quantize(bits=0), "bits"),
        (lambda: defenses.Project(k=9, reference=torch.eye(3)), "k must"),
        (lambda: EmbeddingRegression(backbone="nosuch"), "backbone"),
        (lambda: EmbeddingRegression().fit(EGOS, torch.zeros(3, 2)), "answers"),
        (lambda: ego_graphs(made_graph(6, 0.5, 0), torch.tensor([9])), "roots"),
        (lambda: encode_egos(NAN, EGOS), "NaN"),
        (lambda: scenarios.graph_specific(GRAPH, share=1.0), "share"),
        (lambda: scenarios.data_discrepancy({"one": [GRAPH]}), "domains"),
        (lambda: module_graph("no such distribution", lambda texts: torch.zeros(len(texts), 1)), "not installed"),
        (lambda: World.of(0).domain(0, nodes=3), "nodes"),
        (lambda: Surrogate.load(Path("nosuch")), "nosuch"),
        (lambda: load_graph(Path("nosuch.pt")), "nosuch.pt"),
        (lambda: leakage_report(LinearVictim(), [GRAPH], scenarios=["nosuch"]), "scenarios"),
        (lambda: AuditJob(victim="a", graphs=(Path("a"),), out=Path("b")), "MODULE:FACTORY"),
        (lambda: topologies(0, each=0), "each"),
        (lambda: compare("nosuch", Path("out")), "victim must be"),
    )
    plants = plants()

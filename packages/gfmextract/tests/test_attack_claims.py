"""What must hold of the attack: a copy of the victim agrees in all, units do not count, scenarios meet."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_service import MixVictim, classed_graph, service

from gfmextract.attack import GraphCopy
from gfmextract.baselines import HardLabels, OwnPairs, SoftLabels
from gfmextract.config import ExtractionConfig
from gfmextract.extraction import EmbeddingRegression
from gfmextract.metrics import measures
from gfmextract.scenarios import graph_specific, partial_access, query_budget
from gfmextract.surrogate import fresh_surrogate
from gfmextract.victim import encode_egos
from gfmextract.zero_shot import margins

GRAPH = classed_graph()
QUICK = {"backbone": "gps", "layers": 1, "hidden": 16, "epochs": 3, "min_steps": 1}
TEXT = MixVictim().encode_text
MEASURED = ("accuracy", "fidelity", "cosine", "cka", "certified_agreement")


def drawn(seed):
    rng = torch.Generator().manual_seed(seed)
    a, z = torch.randn(2, 30, 6, generator=rng).double()
    return z + a, z, torch.randint(4, (30,), generator=rng), torch.randn(4, 6, generator=rng).double()


def test_a_copy_of_the_victim_agrees_in_everything():
    """Row 1, on the side of the measures: the copy answers as the victim does, so that nothing is left to certify."""
    (row,) = graph_specific(GRAPH).rows
    egos = row.test_egos()
    victim = fresh_surrogate(ExtractionConfig(**QUICK), egos, 6)
    z, copy = encode_egos(victim, egos), GraphCopy(encoder=deepcopy(victim)).vectors(egos, [])
    text = TEXT(GRAPH.prompts)
    assert torch.equal(copy, z)
    found = measures(copy, z, GRAPH.y[row.test_nodes], text)
    assert (found["fidelity"], found["gap"]) == (1.0, 0.0)
    assert found["cosine"] == pytest.approx(1.0)
    assert found["cka"] == pytest.approx(1.0)
    assert found["certified_agreement"] == (margins(z, text) > 0).double().mean().item() == 1.0


@given(seed=st.integers(0, 9999), scale=st.floats(1e-3, 1e3))
@settings(max_examples=40)
def test_scaling_or_rotating_all_vectors_together_changes_nothing(seed, scale):
    """Row 3."""
    a, z, y, text = drawn(seed)
    expected = pytest.approx(measures(a, z, y, text), abs=1e-9)
    assert measures(scale * a, scale * z, y, scale * text) == expected
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)).double()).Q
    assert measures(a @ rotation, z @ rotation, y, text @ rotation) == expected


@given(st.integers(0, 9999))
@settings(max_examples=40)
def test_certified_agreement_never_exceeds_fidelity(seed):
    """Row 2."""
    found = measures(*drawn(seed))
    assert found["certified_agreement"] <= found["fidelity"]


@pytest.mark.parametrize("level", ["label", "scores"])
def test_a_service_without_embeddings_refuses_regression_by_the_level_it_needs(level):
    """Row 7."""
    asked = service(level=level, prompts=GRAPH.prompts)
    with pytest.raises(ValueError, match=f"level '{level}', but embedding regression needs level 'embedding'"):
        EmbeddingRegression(**QUICK).run(asked, graph_specific(GRAPH), text=TEXT)
    assert asked.total_queries == 0


def test_s4_with_all_queries_and_s5_with_all_nodes_are_s2():
    """Row 9, with the seed that all three share."""
    attack = EmbeddingRegression(**QUICK, seed=4)
    rows = [
        attack.run(service(), scenario, text=TEXT).rows[0]
        for scenario in (
            graph_specific(GRAPH, seed=2),
            query_budget(GRAPH, [1.0], seed=2),
            partial_access(GRAPH, [1.0], seed=2),
        )
    ]
    for row in rows[1:]:
        assert {name: row[name] for name in MEASURED} == {name: rows[0][name] for name in MEASURED}
    other = attack.run(service(), graph_specific(GRAPH, seed=3), text=TEXT).rows[0]
    assert other["cosine"] != rows[0]["cosine"]


@pytest.mark.parametrize("attack", [EmbeddingRegression, HardLabels, SoftLabels, OwnPairs])
@pytest.mark.parametrize("strict", [True, False])
def test_held_out_nodes_never_reach_the_service(attack, strict):
    """Row 11, seen from the service."""
    asked, seen = service(), []
    answer = asked.answer
    asked.answer = lambda egos, **given: seen.append(egos) or answer(egos, **given)
    scenario = query_budget(GRAPH, [0.3, 1.0], strict=strict)
    attack(**QUICK).run(asked, scenario, text=TEXT)
    held_out = scenario.rows[0].test_nodes
    for egos in seen:
        assert not torch.isin(egos.roots, held_out).any()
        assert torch.isin(egos.nodes, held_out).any() != strict
    assert asked.total_queries == sum(len(egos) for egos in seen) == (0 if attack is OwnPairs else 40)

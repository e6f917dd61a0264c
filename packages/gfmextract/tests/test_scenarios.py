from dataclasses import replace
from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import made_graph

from gfmextract.scenarios import (
    Neighbourhood,
    Scenario,
    architecture_mismatch,
    data_discrepancy,
    domain_level,
    graph_specific,
    partial_access,
    query_budget,
)

GRAPH = made_graph(40, 0.15, 0)
A1, A2, B1, B2 = (replace(made_graph(20, 0.2, i), name=name) for i, name in enumerate(("a1", "a2", "b1", "b2")))


def test_s1_and_s6_take_all_ordered_pairs_of_one_domain_and_of_two():
    within = {(row.queried.name, row.test.name) for row in domain_level([A1, A2, B1]).rows}
    assert within == set(permutations(("a1", "a2", "b1"), 2))
    across = {(row.queried.name, row.test.name) for row in data_discrepancy({"a": [A1, A2], "b": [B1, B2]}).rows}
    assert across == {(q, t) for q, t in permutations(("a1", "a2", "b1", "b2"), 2) if q[0] != t[0]}
    assert all(len(row.queries) == len(row.test_nodes) == 20 for row in domain_level([A1, A2]).rows)


@given(share=st.floats(0.1, 0.9), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_s2_divides_the_nodes(share, seed):
    (row,) = graph_specific(GRAPH, share=share, seed=seed).rows
    assert sorted([*row.queries.tolist(), *row.test_nodes.tolist()]) == list(range(40))
    assert len(row.queries) == round(share * 40)


@given(strict=st.booleans(), seed=st.integers(0, 99), cap=st.integers(2, 9), hops=st.integers(1, 2))
@settings(max_examples=15)
def test_test_nodes_are_never_asked_nor_neighbours_of_what_is_asked_when_strict(strict, seed, cap, hops):
    around = Neighbourhood(cap=cap, hops=hops)
    given = {"strict": strict, "seed": seed, "neighbourhood": around}
    rows = [
        *graph_specific(GRAPH, **given).rows,
        *query_budget(GRAPH, [0.2, 1.0], **given).rows,
        *partial_access(GRAPH, [0.5, 1.0], **given).rows,
        *architecture_mismatch(GRAPH, layers=(1,), **given).rows,
    ]
    for row in rows:
        egos = row.query_egos()
        assert torch.equal(egos.roots, row.queries)
        assert not torch.isin(egos.roots, row.test_nodes).any()
        if strict:
            assert not torch.isin(egos.nodes, row.test_nodes).any()
    if not strict and cap == 9:
        assert torch.isin(rows[0].query_egos().nodes, rows[0].test_nodes).any(), "only strict leaves them out"


def test_s4_budgets_are_nested_and_end_in_s2():
    rows = query_budget(GRAPH, [0.1, 0.25, 0.5, 1.0], seed=3).rows
    assert [len(row.queries) for row in rows] == [2, 5, 10, 20]
    for less, more in pairwise(rows):
        assert torch.equal(less.queries, more.queries[: len(less.queries)])
    (whole,) = graph_specific(GRAPH, seed=3).rows
    assert torch.equal(rows[-1].queries, whole.queries)
    assert torch.equal(rows[-1].test_nodes, whole.test_nodes)


def test_s4_with_another_graph_to_test_on_has_all_nodes_to_ask():
    (few, all_) = query_budget(A1, [0.25, 1.0], test=B1).rows
    assert len(few.queries) == 5
    assert all_.queries.sort().values.tolist() == all_.test_nodes.tolist() == list(range(20))


def test_s5_induces_what_is_asked_on_the_visible_nodes_and_tests_on_the_full_graph():
    (some, most, everything) = partial_access(GRAPH, [0.25, 0.5, 1.0], seed=1).rows
    assert set(some.visible.tolist()) < set(most.visible.tolist()) < set(everything.visible.tolist())
    assert torch.isin(most.query_egos().nodes, most.visible).all()
    assert everything.excluded is None
    induced = GRAPH.subgraph(most.visible.sort().values)
    place = {node: i for i, node in enumerate(most.visible.sort().values.tolist())}
    start, neighbours = induced.neighbours
    around = replace(most, neighbourhood=Neighbourhood(cap=40)).query_egos()
    for ego in around:
        root = place[int(ego.node_id[0])]
        expected = {int(most.visible.sort().values[v]) for v in neighbours[start[root] : start[root + 1]]}
        assert set(ego.node_id[1:].tolist()) == expected
    (whole,) = graph_specific(GRAPH, seed=1).rows
    for row in (some, most, everything):
        assert torch.equal(row.test_egos().nodes, whole.test_egos().nodes)


def test_s3_crosses_backbones_depths_and_widths():
    rows = architecture_mismatch(GRAPH, backbones=("sage", "mlp"), layers=(1, 2), widths=(16, 32)).rows
    assert {(row.backbone, row.layers, row.hidden) for row in rows} == {
        (backbone, layers, width) for backbone in ("sage", "mlp") for layers in (1, 2) for width in (16, 32)
    }
    assert len({tuple(row.queries.tolist()) for row in rows}) == 1
    assert len(architecture_mismatch(GRAPH).rows) == 24


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: domain_level([A1]), "graphs must be at least two"),
        (lambda: data_discrepancy({"a": [A1]}), "domains must be at least two, got a"),
        (lambda: domain_level([A1, A1, A2]), "label 'a1 to a1' twice|label 'a1 to a2' twice|test node"),
        (lambda: graph_specific(GRAPH, share=1.0), "share must lie between 0 and 1"),
        (lambda: query_budget(GRAPH, [0.5, 1.5]), "fractions must lie above 0"),
        (lambda: partial_access(GRAPH, [0.0]), "visible must lie above 0"),
        (lambda: partial_access(GRAPH, [0.02]), "leaves . queries: show more"),
        (lambda: Scenario(name="none", rows=()), "rows of scenario 'none'"),
        (lambda: changed(queries=torch.tensor([], dtype=torch.int64)), "queries of row"),
        (lambda: changed(queries=torch.tensor([3, 3])), "hold node 3 twice"),
        (lambda: changed(test_nodes=torch.tensor([5]), queries=torch.tensor([5])), "hold the test node 5"),
        (lambda: changed(queries=torch.tensor([7]), visible=torch.tensor([1])), "hold node 7, which is not in visible"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def changed(**fields):
    (row,) = graph_specific(GRAPH).rows
    return replace(row, **{"test_nodes": torch.tensor([0]), **fields})

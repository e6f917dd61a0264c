"""Ego extraction over one `k_hop_subgraph` call a node, and its growth: `python benchmarks/bench_ego.py [--out FILE]`.

Graphs have about six neighbours a node. PyG's call looks at every edge of the graph for each node, so that its loop is
quadratic; it is timed on `--sample` nodes and told for all. Ours takes every node; seconds over the sum of the ego
graphs' sizes should stay level from 1k to 100k nodes. About two minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from pathlib import Path
from statistics import median

import torch
from aisec_common import env
from aisec_common.files import write_atomic
from aisec_common.seeding import torch_rng
from torch_geometric.data import Batch, Data
from torch_geometric.utils import k_hop_subgraph

from gfmextract.pyg_ego import ego_graphs
from gfmextract.text_graph import TextGraph

NEIGHBOURS = 6
WIDTH = 32
BATCH = 256
RUNS = 3  # one call of ours holds few steps, so that the first pays for warming up; the loop has many


def random_graph(nodes: int) -> TextGraph:
    rng = torch_rng(0, "graph", nodes)
    return TextGraph(
        name=f"{nodes} nodes",
        x=torch.randn(nodes, WIDTH, generator=rng),
        edge_index=torch.randint(nodes, (2, nodes * NEIGHBOURS // 2), generator=rng),
        texts=[""] * nodes,
        y=torch.arange(nodes) % 2,
        classes=("one", "two"),
    )


def loop(graph: TextGraph, roots: list[int], hops: int) -> float:
    """Processor seconds of the loop: a subgraph a node, then batches of them."""
    start, indices = graph.neighbours
    edges = torch.stack([torch.arange(len(graph)).repeat_interleave(start.diff()), indices])
    begin = time.process_time()
    for first in range(0, len(roots), BATCH):
        parts = []
        for root in roots[first : first + BATCH]:
            nodes, inside, at, _ = k_hop_subgraph(root, hops, edges, relabel_nodes=True, num_nodes=len(graph))
            parts.append(Data(x=graph.x[nodes], edge_index=inside, node_id=nodes, root_n_index=at))
        Batch.from_data_list(parts)
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description="Ego extraction over a k_hop_subgraph loop.")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--hops", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sample", type=int, default=200, help="nodes that the loop is timed on")
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    print(
        f"{'hops':>5}{'nodes':>8}{'sum of sizes':>14}{'ours, s':>10}{'us a member':>13}{'loop, s':>10}{'loop/ours':>11}"
    )
    for hops, nodes in product(given.hops, given.nodes):
        graph = random_graph(nodes)
        graph.neighbours  # noqa: B018  (sorted once; the loop gets its edges ready as well)
        spent = []
        for _ in range(RUNS):
            begin = time.process_time()
            egos = ego_graphs(graph, torch.arange(nodes), hops=hops, cap=nodes, positions=0)
            for first in range(0, nodes, BATCH):
                egos[first : first + BATCH].batch()
            spent.append(time.process_time() - begin)
        ours = median(spent)
        sample = torch.randperm(nodes, generator=torch_rng(0, "sample"))[: given.sample].tolist()
        peer = loop(graph, sample, hops) * nodes / len(sample)
        members = len(egos.nodes)
        print(
            f"{hops:5}{nodes:8}{members:14}{ours:10.3f}{ours / members * 1e6:13.2f}{peer:10.2f}{peer / ours:11.1f}",
            flush=True,
        )
        rows.append(
            {
                "hops": hops,
                "nodes": nodes,
                "members": members,
                "ours": ours,
                "peer": "k_hop_subgraph loop",
                "theirs": peer,
            }
            | {"ratio": peer / ours, "microseconds a member": ours / members * 1e6}
        )
    if given.out is not None:
        made = {"versions": env.versions("aisec-gfmextract"), "device": env.device(), "command": env.command()}
        write_atomic(given.out, json.dumps({"rows": rows, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main()

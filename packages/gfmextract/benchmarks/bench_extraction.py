"""What embedding regression costs: `python benchmarks/bench_extraction.py [--width 64] [--out FILE]`.

For each backbone, processor seconds of a regression step on 32 ego graphs of 2 hops; beside it the same step where the
ego graphs are made from the graph anew (with PyG's `k_hop_subgraph` and `AddRandomWalkPE`, as a plain script would do)
in place of once. PyGIP 1.1, the closest library of such attacks, installs, but each of its attacks imports DGL 2.2,
made for PyTorch 2.3, so that it does not run beside a current PyTorch; and it attacks classifiers of one graph, which
answer class posteriors, so that no step of it is of the same kind.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from aisec_common import env
from aisec_common.files import write_atomic
from aisec_common.seeding import torch_rng
from torch.nn import functional
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import AddRandomWalkPE
from torch_geometric.utils import k_hop_subgraph

from gfmextract.config import BACKBONES, ExtractionConfig
from gfmextract.cost import flops_of
from gfmextract.pyg_ego import ego_graphs
from gfmextract.surrogate import Surrogate, fresh_surrogate
from gfmextract.text_graph import TextGraph

NODES, NEIGHBOURS, FEATURES, QUERIES, BATCH, HOPS = 2_000, 6, 64, 512, 32, 2


def random_graph() -> TextGraph:
    rng = torch_rng(0, "graph")
    return TextGraph(
        name="random",
        x=torch.randn(NODES, FEATURES, generator=rng),
        edge_index=torch.randint(NODES, (2, NODES * NEIGHBOURS // 2), generator=rng),
        texts=[""] * NODES,
        y=torch.arange(NODES) % 2,
        classes=("one", "two"),
    )


def made_anew(graph: TextGraph, edges: torch.Tensor, roots: list[int]) -> Batch:
    """A batch by one `k_hop_subgraph` call a root."""
    walk, parts = AddRandomWalkPE(8, "pe"), []
    for root in roots:
        nodes, inside, at, _ = k_hop_subgraph(root, HOPS, edges, relabel_nodes=True, num_nodes=len(graph))
        parts.append(walk(Data(x=graph.x[nodes], edge_index=inside, num_nodes=len(nodes), root_n_index=at)))
    return Batch.from_data_list(parts)


def seconds(step: Callable[[torch.Tensor], object], parts: list[torch.Tensor]) -> float:
    step(parts[0])
    begin = time.process_time()
    for part in parts:
        step(part)
    return (time.process_time() - begin) / len(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="A regression step, with ego graphs made once and made anew.")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    graph = random_graph()
    start, indices = graph.neighbours
    edges = torch.stack([torch.arange(NODES).repeat_interleave(start.diff()), indices])
    begin = time.process_time()
    egos = ego_graphs(graph, torch.arange(QUERIES), hops=HOPS, cap=NODES)
    once = time.process_time() - begin
    answers = torch.randn(QUERIES, FEATURES, generator=torch_rng(0, "answers"))
    parts = list(torch.arange(QUERIES).split(BATCH))
    print(f"{QUERIES} ego graphs of {len(egos.nodes) / QUERIES:.0f} nodes made once: {once:.3f} s")
    rows: list[dict[str, object]] = []
    print(f"{'backbone':>9}{'step, ms':>10}{'GFLOP':>8}{'made anew, ms':>15}{'anew/once':>11}")
    for name in BACKBONES:
        config = ExtractionConfig(backbone=name, layers=given.layers, hidden=given.width)
        surrogate = fresh_surrogate(config, egos, FEATURES)
        optimizer = torch.optim.AdamW(surrogate.parameters())

        def step(
            batch: Batch,
            part: torch.Tensor,
            surrogate: Surrogate = surrogate,
            optimizer: torch.optim.Optimizer = optimizer,
        ) -> None:
            loss = functional.mse_loss(surrogate(batch), answers[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        ours = seconds(lambda part, step=step: step(egos[part].batch(), part), parts)
        theirs = seconds(lambda part, step=step: step(made_anew(graph, edges, part.tolist()), part), parts)
        counted = flops_of(lambda step=step: step(egos[parts[0]].batch(), parts[0]))
        print(f"{name:>9}{1e3 * ours:10.2f}{counted / 1e9:8.2f}{1e3 * theirs:15.2f}{theirs / ours:11.2f}", flush=True)
        rows.append(
            {"backbone": name, "ours": ours, "peer": "k_hop_subgraph in every step", "theirs": theirs}
            | {"ratio": theirs / ours, "flops": counted}
        )
    if given.out is not None:
        made = {"versions": env.versions("aisec-gfmextract"), "device": env.device(), "command": env.command()}
        write_atomic(given.out, json.dumps({"rows": rows, "making once": once, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main()

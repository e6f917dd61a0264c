import pytest
import torch

from gfmextract.simulated_clients import benign_queries, crawling_queries


def test_benign_clients_stay_with_few_cells_and_come_back():
    cells = torch.arange(300) % 10
    streams = benign_queries(cells, clients=20, queries=100, focus=0.1, seed=1)
    visited = torch.tensor([len(cells[stream].unique()) for stream in streams]).float().mean()
    wide = benign_queries(cells, clients=20, queries=100, focus=100.0, seed=1)
    everywhere = torch.tensor([len(cells[stream].unique()) for stream in wide]).float().mean()
    assert visited < 5 < 9 < everywhere
    assert all(len(stream) == 100 > len(stream.unique()) for stream in streams)
    assert all(stream.min() >= 0 and stream.max() < 300 for stream in streams)
    assert len({tuple(stream.tolist()) for stream in streams}) == 20


def test_crawlers_ask_for_different_nodes_equally_often():
    streams = crawling_queries(50, clients=400, queries=20, seed=1)
    assert all(len(stream.unique()) == 20 for stream in streams)
    counts = torch.cat(streams).bincount(minlength=50).double()
    assert float(((counts - 160) ** 2 / 160).sum()) < 80, "chi-square of 49 degrees of freedom, one in 300"
    again = crawling_queries(50, clients=2, queries=20, seed=1)
    assert torch.equal(again[1], streams[1])


def test_a_crawler_cannot_ask_for_more_than_there_is():
    with pytest.raises(ValueError, match="queries must be at most the 50 nodes, got 51"):
        crawling_queries(50, clients=1, queries=51)

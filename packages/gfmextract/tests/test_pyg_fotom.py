import networkx as nx
import pytest
import torch
from aisec_common.data import is_fetched
from sklearn.linear_model import LogisticRegression
from torch_geometric.data import Data

from gfmextract.pyg_ego import EgoGraphs
from gfmextract.pyg_fotom import FotomVictim, load_fotom
from gfmextract.victim import encode_egos

fetched = pytest.mark.skipif(not is_fetched("fotom"), reason="run `aisec data fetch fotom`")


def as_egos(graphs):
    made = []
    for graph in graphs:
        ends = torch.tensor(list(graph.edges)).T
        made.append(Data(x=torch.ones(len(graph), 1), edge_index=torch.cat([ends, ends.flip(0)], 1)))
    return EgoGraphs.of(made)


def by_hand(victim, adjacent):
    """One graph in dense algebra."""
    state = victim.state_dict()

    def norm(name, h):
        scale = state[f"{name}.weight"] / (state[f"{name}.running_var"] + 1e-5).sqrt()
        return (h - state[f"{name}.running_mean"]) * scale + state[f"{name}.bias"]

    h = state["atoms.0.weight"][1].repeat(len(adjacent), 1)
    for layer in range(6):
        at = f"convs.{layer}"
        inner = (1 + state[f"{at}.eps"]) * h + adjacent @ (h + state["bonds.0.weight"][1]).relu()
        inner = norm(f"{at}.nn.1", inner @ state[f"{at}.nn.0.weight"].T + state[f"{at}.nn.0.bias"]).relu()
        h = norm(f"bns.{layer}", inner @ state[f"{at}.nn.3.weight"].T + state[f"{at}.nn.3.bias"])
        h = h.relu() if layer < 5 else h
    return h.sum(0)


def test_it_is_the_stack_of_its_docstring():
    torch.manual_seed(0)
    victim = FotomVictim().train()
    graphs = [nx.gnp_random_graph(12, 0.4, seed=seed) for seed in range(3)]
    victim(as_egos(graphs).batch())  # moves the running means away from 0 and 1
    expected = torch.stack([by_hand(victim, torch.from_numpy(nx.to_numpy_array(graph)).float()) for graph in graphs])
    torch.testing.assert_close(victim.encode_graph(as_egos(graphs).batch()), expected, rtol=1e-4, atol=1e-3)
    assert victim.training


def test_there_is_no_text_side():
    with pytest.raises(TypeError, match="no text encoder"):
        FotomVictim().encode_text(["a"])


def test_other_weights_are_refused(tmp_path):
    torch.save({"encoder_state_dict": {"encoder.convs.0.eps": torch.ones(1)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="does not hold the weights of FoToM") as caught:
        load_fotom(tmp_path / "other.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.checkpoint
@fetched
def test_published_weights_tell_kinds_of_graphs_apart():
    victim = load_fotom()
    kinds = [
        lambda seed: nx.random_labeled_tree(30, seed=seed),
        lambda seed: nx.gnp_random_graph(30, 0.2, seed=seed),
        lambda seed: nx.barabasi_albert_graph(30, 3, seed=seed),
        lambda seed: nx.connected_watts_strogatz_graph(30, 4, 0.1, seed=seed),
    ]
    egos = as_egos([kind(seed) for seed in range(20) for kind in kinds])
    z = encode_egos(victim, egos)
    torch.testing.assert_close(encode_egos(victim, egos, 1), z, rtol=1e-5, atol=1e-4)
    label = torch.arange(80) % 4
    scale = z[:40].std(0) + 1e-6
    probe = LogisticRegression(max_iter=500).fit((z[:40] / scale).numpy(), label[:40].numpy())
    assert probe.score((z[40:] / scale).numpy(), label[40:].numpy()) > 0.9

import copy

import pytest
import torch
from small_graphs import made_graph
from torch.nn.functional import scaled_dot_product_attention

from gfmextract.hf_text_tower import load_text_tower, tiny_text_tower
from gfmextract.pyg_backbones import POSITION_EPS
from gfmextract.pyg_ego import ego_graphs
from gfmextract.pyg_graph_clip import GraphClip, GraphClipConfig

CONFIG = GraphClipConfig(layers=2, width=16, heads=2)


@pytest.fixture(scope="module")
def tower():
    return tiny_text_tower(["one", "two", "text"], torch.eye(3), seed=0)


@pytest.fixture
def victim(tower):
    made = GraphClip(CONFIG, features=4, tower=tower, seed=1)
    rng = torch.Generator().manual_seed(0)
    for part in made.modules():  # running means of a training, so that the order of the parts shows
        if isinstance(part, torch.nn.BatchNorm1d):
            part.running_mean.normal_(generator=rng)
            part.running_var.uniform_(0.5, 2, generator=rng)
    return made


@pytest.fixture
def egos():
    return ego_graphs(made_graph(20, 0.3, 0), torch.arange(20))


def by_hand(victim, ego):
    """One ego graph through the encoder, spelled out in dense algebra."""
    state = victim.state_dict()

    def linear(name, h):
        return h @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0.0)

    def norm(name, h, eps=1e-5):
        scale = state[f"{name}.weight"] / (state[f"{name}.running_var"] + eps).sqrt()
        return (h - state[f"{name}.running_mean"]) * scale + state[f"{name}.bias"]

    count = len(ego.x)
    adjacent = torch.zeros(count, count)
    adjacent[ego.edge_index[1], ego.edge_index[0]] = 1.0
    average = adjacent / adjacent.sum(1, keepdim=True).clamp(min=1)
    positions = linear("graph.positions.1", norm("graph.positions.0", ego.pe, POSITION_EPS))
    h = torch.cat([linear("graph.features", ego.x), positions], 1)
    for layer in range(CONFIG.layers):
        at = f"graph.layers.layers.{layer}"
        local = linear(f"{at}.conv.lin_l", average @ h) + linear(f"{at}.conv.lin_r", h)
        q, k, v = (h @ state[f"{at}.attn.in_proj_weight"].T + state[f"{at}.attn.in_proj_bias"]).chunk(3, 1)
        q, k, v = (each.reshape(count, CONFIG.heads, -1).transpose(0, 1) for each in (q, k, v))
        mixed = scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(count, -1)
        attended = linear(f"{at}.attn.out_proj", mixed)
        h = norm(f"{at}.norm1.module", h + local) + norm(f"{at}.norm2.module", h + attended)
        h = norm(f"{at}.norm3.module", h + linear(f"{at}.mlp.3", linear(f"{at}.mlp.0", h).relu()))
    return linear("graph.readout", torch.cat([h.mean(0), h[0]]))


def test_it_is_the_encoder_of_the_paper(victim, egos):
    expected = torch.stack([by_hand(victim, ego) for ego in egos])
    torch.testing.assert_close(victim.encode_graph(egos.batch()), expected, rtol=1e-4, atol=1e-5)


def test_it_answers_in_eval_mode_whatever_mode_it_is_in(victim, egos):
    expected = victim.eval().encode_graph(egos.batch())
    before = copy.deepcopy(victim.state_dict())
    answer = victim.train().encode_graph(egos.batch())
    assert torch.equal(answer, expected)
    assert not answer.requires_grad
    assert victim.training, "the mode it had is put back"
    assert all(torch.equal(before[name], tensor) for name, tensor in victim.state_dict().items())
    assert victim(egos.batch()).requires_grad


def test_texts_go_to_the_tower(victim, tower):
    assert torch.equal(victim.encode_text(("one text", "two text")), tower.encode(["one text", "two text"]))
    assert copy.deepcopy(victim).tower is tower


def test_the_tower_is_no_part_of_the_weights(victim):
    assert not any(name.startswith("tower") for name in victim.state_dict())


def test_a_saved_victim_answers_alike(victim, tower, egos, tmp_path):
    victim.spent.copy_(torch.tensor([2.0, 3.0]))
    victim.save(tmp_path / "victim.safetensors")
    loaded = GraphClip.load(tmp_path / "victim.safetensors", tower)
    assert torch.equal(loaded.encode_graph(egos.batch()), victim.encode_graph(egos.batch()))
    assert loaded.cost == victim.cost
    assert loaded.cost.seconds == 2.0
    with pytest.raises(ValueError, match="tower is not the one"):
        GraphClip.load(tmp_path / "victim.safetensors", tiny_text_tower(["one"], torch.ones(1, 2), seed=5))
    with pytest.raises(ValueError, match="has no name to load it by"):
        GraphClip.load(tmp_path / "victim.safetensors")
    (tmp_path / "other").write_text("nothing")
    (tmp_path / "folder").mkdir()
    for wrong in ("other", "absent", "folder"):
        with pytest.raises(ValueError, match=r"is not a file that GraphClip\.save wrote"):
            GraphClip.load(tmp_path / wrong, tower)


def test_a_tower_is_loaded_by_the_name_that_the_file_has(victim, tower, egos, tmp_path):
    tower.model.save_pretrained(tmp_path / "tower")
    tower.tokenizer.save_pretrained(tmp_path / "tower")
    named = GraphClip(CONFIG, features=4, tower=load_text_tower(str(tmp_path / "tower")), seed=1)
    named.save(tmp_path / "victim.safetensors")
    loaded = GraphClip.load(tmp_path / "victim.safetensors")
    assert torch.equal(loaded.encode_graph(egos.batch()), named.encode_graph(egos.batch()))
    torch.testing.assert_close(loaded.encode_text(["one two"]), tower.encode(["one two"]))


def test_a_seed_gives_the_same_first_weights(tower):
    first, again, other = (GraphClip(CONFIG, features=4, tower=tower, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["graph.features.weight"], other["graph.features.weight"])


def test_wrong_sizes_are_refused(victim, egos):
    graph = made_graph(20, 0.3, 0)
    with pytest.raises(ValueError, match=r"width \(4, 3\), this encoder reads \(4, 8\)"):
        victim.encode_graph(ego_graphs(graph, torch.arange(4), positions=3).batch())
    with pytest.raises(ValueError, match="multiple of 3 heads"):
        GraphClipConfig(width=16, heads=3)
    with pytest.raises(ValueError, match="at least 1"):
        GraphClipConfig(layers=0)

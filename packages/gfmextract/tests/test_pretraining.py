import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gfmextract.pretraining import PretrainingConfig, contrast, info_nce, pretrain
from gfmextract.pyg_ego import ego_graphs
from gfmextract.pyg_graph_clip import GraphClip, GraphClipConfig
from gfmextract.synthetic import World, summaries
from gfmextract.victim import encode_egos
from gfmextract.zero_shot import predict

SMALL = GraphClipConfig(layers=1, width=16, heads=2)
PLAIN = PretrainingConfig(encoder=SMALL, epochs=2, feature_mask=0, edge_drop=0)


@pytest.fixture(scope="module")
def world():
    return World.of(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AISEC_CACHE", str(tmp_path))


@given(seed=st.integers(0, 999), size=st.integers(1, 7), log_scale=st.floats(0, 6))
def test_the_loss_is_that_of_a_loop(seed, size, log_scale):
    rng = torch.Generator().manual_seed(seed)
    graphs, texts = torch.randn(2, size, 5, generator=rng).double()
    scale = min(math.exp(log_scale), 100)
    total = 0.0
    for i in range(size):
        for a, b in ((graphs, texts), (texts, graphs)):
            scores = [scale * (a[i] @ b[j] / a[i].norm() / b[j].norm()).item() for j in range(size)]
            highest = max(scores)
            total += highest + math.log(sum(math.exp(score - highest) for score in scores)) - scores[i]
    found = info_nce(graphs, texts, torch.tensor(log_scale, dtype=torch.float64)).item()
    assert found == pytest.approx(total / 2 / size, rel=1e-6, abs=1e-6)


def encoder_and_batch(world):
    graph = world.pretraining(0, domains=1)[0]
    egos = ego_graphs(graph, torch.arange(24))
    return GraphClip(SMALL, features=64, tower=world.tower).train(), egos, world.tower.encode(summaries(graph, egos))


def gradients(encoder):
    return [parameter.grad.clone() for parameter in encoder.parameters()]


def test_without_augmentations_a_step_is_the_plain_gradient(world):
    encoder, egos, texts = encoder_and_batch(world)
    plain = copy.deepcopy(encoder)
    info_nce(plain(egos.batch()), texts, plain.log_scale).backward()
    contrast(encoder, egos.batch(), texts, PLAIN, torch.Generator().manual_seed(0))
    for found, expected in zip(gradients(encoder), gradients(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_perturbed_steps_climb_along_the_sign_of_the_gradient(world):
    encoder, egos, texts = encoder_and_batch(world)
    byhand = copy.deepcopy(encoder)
    config = PretrainingConfig(feature_mask=0, edge_drop=0, perturbation_steps=3, perturbation_step=0.05)
    loss = contrast(encoder, egos.batch(), texts, config, torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(0)
    torch.rand(64, generator=rng)  # the feature mask is drawn first
    moved = (torch.rand(egos.x.shape, generator=rng) * 2 - 1) * 0.05
    losses, total = [], [torch.zeros_like(parameter) for parameter in byhand.parameters()]
    for _ in range(3):
        batch = egos.batch()
        batch.x = (egos.x + moved).requires_grad_()
        each = info_nce(byhand(batch), texts, byhand.log_scale)
        *grads, push = torch.autograd.grad(each, [*byhand.parameters(), batch.x])
        total = [sum_ + grad / 3 for sum_, grad in zip(total, grads, strict=True)]
        moved = moved + 0.05 * push.sign()
        losses.append(each.item())
    assert loss == pytest.approx(sum(losses) / 3, rel=1e-5)
    for found, expected in zip(gradients(encoder), total, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_masks_leave_the_wanted_shares(world):
    encoder, egos, texts = encoder_and_batch(world)
    seen = []
    encoder.register_forward_pre_hook(lambda _, given: seen.append((given[0].x.detach(), given[0].edge_index)))
    rng = torch.Generator().manual_seed(0)
    for _ in range(40):
        contrast(encoder, egos.batch(), texts, PretrainingConfig(feature_mask=0.3, edge_drop=0.2), rng)
    zero = [(x == 0).all(0).float().mean() for x, _ in seen]
    assert torch.stack(zero).mean().item() == pytest.approx(0.3, abs=0.04)
    kept = [edges.shape[1] / egos.edge_index.shape[1] for _, edges in seen]
    assert sum(kept) / 40 == pytest.approx(0.8, abs=0.03)


def test_a_victim_is_trained_once_and_then_read(world):
    graphs = world.pretraining(0, domains=2)
    told, told_again = [], []
    first = pretrain(graphs, summaries, world.tower, PLAIN, 3, lambda *step: told.append(step))
    again = pretrain(graphs, summaries, world.tower, PLAIN, 3, lambda *step: told_again.append(step))
    assert told == [("pretraining the victim", 1, 2), ("pretraining the victim", 2, 2)]
    assert not told_again
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in first.state_dict().items())
    assert not first.training
    assert not again.training
    assert again.cost == first.cost
    assert first.cost.seconds > 0
    assert first.cost.flops > 1e6
    other = pretrain(graphs, summaries, world.tower, PLAIN, 4)
    assert not torch.equal(other.log_scale, first.log_scale)


@pytest.mark.slow
def test_the_embedded_victim_beats_text_alone_on_domains_it_never_saw(world):
    config = PretrainingConfig(epochs=4, batch_size=128, feature_mask=0.5)  # the study's, on as many domains
    victim = pretrain(world.pretraining(0, domains=240), summaries, world.tower, config, seed=0)
    above = []
    for seed in range(6):
        (graph,) = world.domain(seed)
        text = world.tower.encode(graph.prompts)
        z = encode_egos(victim, ego_graphs(graph, torch.arange(len(graph))))
        right, alone = ((predict(each, text) == graph.y).float().mean().item() for each in (z, graph.x))
        above.append(right - alone)
    assert sum(above) / 6 > 0.04


def test_wrong_inputs_are_refused(world):
    with pytest.raises(ValueError, match="graphs is empty"):
        pretrain([], summaries, world.tower)
    with pytest.raises(ValueError, match="summaries gave 1 texts for 24 ego graphs of graph 'pretraining 0'"):
        pretrain(world.pretraining(0, domains=1), lambda graph, egos: ["one"], world.tower)
    with pytest.raises(ValueError, match="graphs and texts must be"):
        info_nce(torch.ones(2, 3), torch.ones(3, 3), torch.zeros(()))
    for wrong in ({"epochs": 0}, {"batch_size": 1}, {"feature_mask": 1.0}, {"edge_drop": -0.1}, {"learning_rate": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PretrainingConfig(**wrong)

import copy
import math

import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES, batches, mixed, model_of, noisy_weights, plain_loss, players_of

from impq.scores import SCORES, activation, lim, llm_mq, weight_error, zd


def game(architecture="llama", granularity="block", blocks=3):
    model = model_of(architecture, blocks)
    players = players_of(model, granularity)
    return model, players, batches(architecture), noisy_weights(model, players)


def block_states(model, part):
    """Block inputs and outputs from transformers' own record (the last one is normed, so it is hooked)."""
    outputs = []
    hook = model.model.layers[-1].register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        states = model(**part.inputs, output_hidden_states=True).hidden_states
    hook.remove()
    return [*states[:-1], outputs[0]]


class TestLlmMq:
    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    def test_against_ordinary_backward(self, architecture):
        model, players, parts, weights = game(architecture)
        other = copy.deepcopy(model)
        counted = sum(int((part.labels[:, 1:] != -100).sum()) for part in parts)
        for part in parts:
            loss = other(**part.inputs, labels=part.labels).loss
            (loss * (part.labels[:, 1:] != -100).sum() / counted).backward()
        expected = []
        for player in players:
            total = 0.0
            for name in player.modules:
                weight = other.get_submodule(name).weight
                low, high = (float((weight.grad * (weight.detach() - weights[name, level])).sum()) for level in (1, 0))
                total += abs(low) - abs(high)
            expected.append(total)
        assert llm_mq(model, players, parts, weights) == pytest.approx(expected, rel=1e-3, abs=1e-5)

    def test_first_order_change_of_the_loss(self):
        model, players, parts, weights = game("llama", "linear")
        small = {key: model.get_submodule(key[0]).weight.detach() for key in weights}
        name = players[3].name
        step = 2e-3 * torch.randn(small[name, 1].shape, generator=torch.Generator().manual_seed(3))
        moved = small | {(name, 1): small[name, 1] + step}
        changes = [
            plain_loss(mixed(model, players, small | {(name, 1): small[name, 1] + sign * step}, levels), parts)
            for sign in (1, -1)
            for levels in [[int(player.name == name) for player in players]]
        ]
        scores = llm_mq(model, players, parts, moved)
        assert scores[3] == pytest.approx(abs(changes[0] - changes[1]) / 2, rel=0.05)
        assert np.count_nonzero(scores) == 1

    def test_frozen_model_and_gradients_are_left_alone(self):
        model, players, parts, weights = game()
        model.requires_grad_(False)
        model.train()
        bias = model.model.norm.weight
        bias.grad = torch.ones_like(bias)
        before = {name: p.clone() for name, p in model.state_dict().items()}
        assert np.isfinite(llm_mq(model, players, parts, weights)).all()
        assert model.training
        assert not any(p.requires_grad for p in model.parameters())
        assert [p.grad is None for p in model.parameters()].count(False) == 1
        assert torch.equal(bias.grad, torch.ones_like(bias))
        assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())

    def test_nothing_scored(self):
        model, players, _, weights = game()
        with pytest.raises(ValueError, match="batches: no token is scored"):
            llm_mq(model, players, [], weights)


class TestHiddenStateScores:
    def test_lim(self):
        model, players, parts, weights = game()
        totals, tokens = np.zeros(3), 0
        for part in parts:
            states = block_states(model, part)
            for row, t in part.inputs["attention_mask"].nonzero().tolist():
                for i in range(3):
                    a, b = states[i][row, t], states[i + 1][row, t]
                    totals[i] -= float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
                tokens += 1
        assert lim(model, players, parts, weights) == pytest.approx(totals / tokens, abs=1e-5)

    def test_activation(self):
        model, players, parts, weights = game()
        squares = np.zeros(3)
        for part in parts:
            states = block_states(model, part)
            for row, t in part.inputs["attention_mask"].nonzero().tolist():
                squares += [float(states[i + 1][row, t].square().sum()) for i in range(3)]
        assert activation(model, players, parts, weights) == pytest.approx(np.sqrt(squares), rel=1e-5)

    def test_a_block_that_does_nothing_matters_least(self):
        model, players, parts, weights = game(blocks=4)
        layer = model.model.layers[2]
        with torch.no_grad():
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        scores = lim(model, players, parts, weights)
        assert scores.argmin() == 2
        assert scores[2] == pytest.approx(-1)

    @pytest.mark.parametrize("score", [lim, activation])
    @pytest.mark.parametrize("granularity", ["linear", "group"])
    def test_only_for_blocks(self, score, granularity):
        with pytest.raises(ValueError, match="players: this score belongs to whole blocks"):
            score(*game(granularity=granularity))

    @pytest.mark.parametrize("score", [lim, activation])
    def test_needs_data(self, score):
        model, players, _, weights = game()
        with pytest.raises(ValueError, match="batches"):
            score(model, players, [], weights)


class TestWeightScores:
    @pytest.mark.parametrize("granularity", ["block", "linear", "group"])
    def test_zd(self, granularity):
        model, players, parts, weights = game("gpt2", granularity)
        expected = []
        for player in players:
            w = np.concatenate([model.get_submodule(n).weight.detach().numpy().ravel() for n in player.modules])
            expected.append(np.mean((w - w.mean()) / w.std() > 1))
        assert zd(model, players, parts, weights) == pytest.approx(expected, abs=2e-3)
        assert zd(model, players, parts, weights, sign=-1) == pytest.approx([-s for s in expected], abs=2e-3)

    def test_weight_error(self):
        model, players, parts, weights = game()
        expected = [sum(((weights[n, 1] - weights[n, 0]) ** 2).sum().item() for n in p.modules) for p in players]
        assert weight_error(model, players, parts, weights) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", SCORES)
def test_one_finite_number_per_player(architecture, name):
    arguments = game(architecture)
    scores = SCORES[name](*arguments)
    assert scores.shape == (3,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert np.array_equal(scores, SCORES[name](*arguments))

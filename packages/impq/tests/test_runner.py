import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ARCHITECTURES, VOCABULARY, batches, mixed, model_of, noisy_weights, plain_loss, players_of
from torch import nn

from impq.runner import Batch, BlockRunner, evaluation, row_nll
from impq.value import prefix_order
from impq.walks import Walks, levels
from impq.weights import QuantizedWeights


def runner_of(architecture="llama", blocks=3, *, granularity="block", widths=2, parts=None, **options):
    model = model_of(architecture, blocks)
    players = players_of(model, granularity, widths)
    weights = noisy_weights(model, players, widths)
    parts = batches(architecture) if parts is None else parts
    return BlockRunner(model, players, weights, parts, widths=widths, **options)


def reference(runner, coalition):
    level = levels(coalition, len(runner.players), runner.widths).tolist()
    return plain_loss(mixed(runner.model, runner.players, runner.weights, level), runner.batches)


def state_of(model):
    """Everything that must be as before."""
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)},
        [(name, id(module), module.training, len(module._forward_pre_hooks)) for name, module in model.named_modules()],
        [(p.dtype, p.device, p.requires_grad, p.grad) for p in model.parameters()],
    )


def assert_same(before, model):
    now = state_of(model)
    assert before[1:] == now[1:]
    assert before[0].keys() == now[0].keys()
    assert all(torch.equal(before[0][name], now[0][name]) for name in now[0])


class TestAgainstPlainForward:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_every_coalition_in_any_order(self, architecture):
        runner = runner_of(architecture)
        order = [5, 0, 7, 2, 1, 6, 3, 4, 4, 0]
        assert runner(order) == pytest.approx([reference(runner, c) for c in order], abs=1e-5)

    @pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
    def test_models_own_loss(self, architecture):
        parts = batches(architecture, rows=(3,))
        runner = runner_of(architecture, parts=parts)
        model = mixed(runner.model, runner.players, runner.weights, [0, 1, 1])
        own = model(**parts[0].inputs, labels=parts[0].labels).loss.item()
        assert runner([0b110])[0] == pytest.approx(own, abs=1e-5)

    @pytest.mark.parametrize("granularity", ["linear", "group"])
    def test_players_inside_blocks(self, granularity):
        runner = runner_of("gemma2", 2, granularity=granularity)
        order = [0, 1, 2, 0b1010, 0b0111, 0b1111, 0b1000]
        assert runner(order) == pytest.approx([reference(runner, c) for c in order], abs=1e-5)

    def test_three_widths(self):
        runner = runner_of(widths=3)
        order = [0, 0b01, 0b0111, 0b110111, 0b111111, 0b010101]
        assert runner(order) == pytest.approx([reference(runner, c) for c in order], abs=1e-5)

    def test_weights_of_the_rtn_backend_in_conv1d_layout(self):
        model = model_of("gpt2")
        players = players_of(model)
        weights = QuantizedWeights(model, [player.modules for player in players], "rtn", (4, 2), 8)
        runner = BlockRunner(model, players, weights, batches("gpt2"), widths=2)
        assert runner([2, 5]) == pytest.approx([reference(runner, 2), reference(runner, 5)], abs=1e-5)

    @settings(max_examples=15)
    @given(order=st.lists(st.integers(0, 15), min_size=1, max_size=12), cache=st.sampled_from([0, 4000, 9000, 2**30]))
    def test_history_and_cache_do_not_matter(self, order, cache):
        runner = HISTORY[cache]
        assert runner(order) == pytest.approx([EXPECTED[c] for c in order], abs=1e-5)

    def test_half_precision_model(self):
        runner = runner_of()
        model = model_of("llama").to(torch.bfloat16)
        weights = {key: weight.to(torch.bfloat16) for key, weight in runner.weights.items()}
        half = BlockRunner(model, runner.players, weights, runner.batches, widths=2)
        assert half([3])[0] == pytest.approx(reference(half, 3), abs=1e-5)
        assert half([3])[0] == pytest.approx(runner([3])[0], abs=0.1)

    def test_unequal_batches_are_weighted_by_tokens(self):
        parts = batches(rows=(3, 2))
        short = Batch(inputs=parts[1].inputs, labels=parts[1].labels.clone())
        short.labels[:, :-1] = -100
        runner = runner_of(parts=[parts[0], short])
        assert runner([1])[0] == pytest.approx(reference(runner, 1), abs=1e-5)


HISTORY = {cache: runner_of("llama", 4, cache_bytes=cache) for cache in (0, 4000, 9000, 2**30)}
EXPECTED = [reference(HISTORY[0], c) for c in range(16)]


class TestCounts:
    def test_walk_costs_half_of_the_square(self):
        runner = runner_of(blocks=6)
        coalitions = Walks(players=6, seed=3).coalitions(0)
        runner([0])
        assert runner.n_block_forwards == 6
        for coalition in coalitions[:-1]:
            runner([coalition])
        last = (coalitions[-1] ^ coalitions[-2]).bit_length() - 1
        assert runner.n_block_forwards == 6 + 6 * 7 // 2 - (6 - last)
        assert runner.n_evaluations == 6

    def test_walks_never_cost_more(self):
        runner, walks = runner_of(blocks=6), Walks(players=6, seed=3)
        runner([0, 63])
        for m in range(4):
            before = runner.n_block_forwards
            runner(walks.coalitions(m))
            assert runner.n_block_forwards - before <= 6 * 7 // 2

    def test_promotion_starts_from_the_other_end(self):
        runner, walks = runner_of(blocks=5), Walks(players=5, seed=1, direction="promote")
        runner([0, 31, 0b00001])
        before = runner.n_block_forwards
        coalitions = walks.coalitions(0)
        runner(coalitions[:-1])
        last = (coalitions[-1] ^ coalitions[-2]).bit_length() - 1
        assert runner.n_block_forwards - before == 15 - (5 - last)

    def test_trie_of_all_coalitions(self):
        runner = runner_of("tuples", 8)
        runner(prefix_order(range(256), 8))
        assert runner.n_block_forwards == 510
        assert runner.n_evaluations == 256
        assert runner.head_seconds > 0

    @pytest.mark.parametrize("kept", [1, 2, 3])
    def test_trie_without_room_keeps_every_second_or_third_input(self, kept):
        runner = runner_of("tuples", 6, parts=batches("tuples", rows=(3,)), cache_bytes=kept * 3 * 10 * 16 * 4)
        runner(prefix_order(range(64), 6))
        stride = 6 // kept
        # 2^j coalitions differ first at block j from the one before; they start at the stored block at or below j
        assert runner.n_block_forwards == 6 + sum(2**j * (6 - j // stride * stride) for j in range(6))

    def test_share_of_tokens(self):
        runner = runner_of("tuples", 3, parts=batches("tuples", rows=(3, 1)))
        runner([0, 4])
        assert runner.n_block_forwards == 4


class TestPrune:
    def test_low_block_is_left_out(self):
        runner = runner_of("llama", 3, payoff="prune")
        whole = mixed(runner.model, runner.players, runner.weights, [0, 0, 0])
        del whole.model.layers[1]
        whole.config.num_hidden_layers = 2
        assert runner([0b010])[0] == pytest.approx(plain_loss(whole, runner.batches), abs=1e-5)

    def test_everything_left_out(self):
        assert math.isfinite(runner_of(payoff="prune")([7])[0])

    def test_needs_whole_blocks(self):
        with pytest.raises(ValueError, match="payoff: 'prune' needs two widths and granularity 'block'"):
            runner_of(payoff="prune", granularity="linear")
        with pytest.raises(ValueError, match="payoff"):
            runner_of(payoff="prune", widths=3)


class TestModelIsUntouched:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    @pytest.mark.parametrize("training", [True, False])
    def test_after_evaluations(self, architecture, training):
        model = model_of(architecture)
        model.train(training)
        next(model.children()).train(not training)
        players = players_of(model)
        weights = noisy_weights(model, players)
        before = state_of(model)
        runner = BlockRunner(model, players, weights, batches(architecture), widths=2)
        first = runner([0, 3, 5])
        assert_same(before, model)
        assert runner([5, 0]) == pytest.approx([first[2], first[0]], abs=1e-6)
        assert_same(before, model)

    def test_after_an_exception_and_still_usable(self):
        model = model_of("gemma2").train()
        players = players_of(model)
        weights = Failing(noisy_weights(model, players))
        before = state_of(model)
        runner = BlockRunner(model, players, weights, batches(), widths=2)
        expected = runner([0, 2, 6])
        for after in range(1, 40, 6):
            weights.left = after
            with pytest.raises(RuntimeError, match="in the middle"):
                runner([1, 2, 4, 3, 6, 7, 5])
            assert_same(before, model)
            weights.left = None
            assert runner([0, 2, 6]) == pytest.approx(expected, abs=1e-6)

    def test_gradients_can_still_be_taken(self):
        runner = runner_of()
        runner([1])
        runner.model(**runner.batches[0].inputs).logits.sum().backward()
        assert runner.model.model.layers[0].mlp.up_proj.weight.grad is not None


class Failing(dict):
    """Weights that raise after `left` accesses."""

    left = None

    def __getitem__(self, key):
        if self.left is not None:
            self.left -= 1
            if not self.left:
                raise RuntimeError("in the middle")
        return super().__getitem__(key)


class TestErrors:
    def test_nothing_scored(self):
        with pytest.raises(ValueError, match="batches: at least one"):
            runner_of(parts=[])
        with pytest.raises(ValueError, match="batches: no token is scored"):
            runner_of(parts=batches(tokens=1, rows=(2,)))

    def test_labels(self):
        part = batches(rows=(2,))[0]
        with pytest.raises(ValueError, match=f"labels of batch 0 .* vocabulary size {VOCABULARY}"):
            runner_of(parts=[dataclasses.replace(part, labels=part.labels + VOCABULARY)])
        with pytest.raises(ValueError, match=r"labels must be \[rows, tokens\]"):
            runner_of(parts=[dataclasses.replace(part, labels=part.labels[0])])
        runner = runner_of(parts=[dataclasses.replace(part, labels=part.labels[:, 1:])])
        with pytest.raises(ValueError, match=r"labels are \[2, 9\], the model's inputs have 20 tokens"):
            runner([0])

    def test_key_value_cache(self):
        part = batches(rows=(2,))[0]
        inputs = {name: value for name, value in part.inputs.items() if name != "use_cache"}
        with pytest.raises(ValueError, match="use_cache=False"):
            runner_of(parts=[dataclasses.replace(part, inputs=inputs)])

    def test_players_of_another_model(self):
        model, other = model_of("llama"), model_of("gpt2")
        players = players_of(other)
        with pytest.raises(ValueError, match=r"no linear 'transformer.h.0.attn.c_attn' in block 0"):
            BlockRunner(model, players, noisy_weights(other, players), batches(), widths=2)

    def test_unknown_coalition(self):
        with pytest.raises(ValueError, match="coalition 0x8"):
            runner_of()([8])

    @pytest.mark.parametrize(("options", "named"), [({"payoff": "drop"}, "payoff"), ({"widths": 1}, "widths")])
    def test_options(self, options, named):
        with pytest.raises(ValueError, match=named):
            runner_of(**options)

    def test_infinite_loss_is_returned_as_it_is(self):
        runner = runner_of()
        for name in runner.players[1].modules:
            runner.weights[name, 1].fill_(math.inf)
        good, bad, again = runner([0, 2, 0])
        assert not math.isfinite(bad)
        assert good == again


class TestRowNll:
    def test_against_log_softmax(self):
        logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
        labels = torch.tensor([[3, 1, -100, 6, 2], [0, 0, 0, -100, -100]])
        sums, counts = row_nll(logits, labels)
        log_p = torch.log_softmax(logits.double(), -1)
        assert counts.tolist() == [3, 2]
        assert sums[0].item() == pytest.approx(-(log_p[0, 0, 1] + log_p[0, 2, 6] + log_p[0, 3, 2]).item(), abs=1e-6)
        assert sums[1].item() == pytest.approx(-(log_p[1, 0, 0] + log_p[1, 1, 0]).item(), abs=1e-6)

    def test_half_precision_logits_are_scored_in_single(self):
        logits = torch.tensor([[[60000.0, 0.0], [0.0, 0.0]]], dtype=torch.float16)
        assert row_nll(logits, torch.tensor([[0, 1]]))[0].item() == 60000.0


def test_evaluation_restores_each_flag():
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[1].eval()

    def inside():
        with evaluation(model):
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        inside()
    assert [module.training for module in model.modules()] == [True, True, False]

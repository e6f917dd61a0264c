"""Checks 3, 7, 13, 15 and 16: from a model and a text to its game, interrupted, killed, resumed and changed."""

import copy
import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pairwise_games import exact_shapley
from tiny_models import VOCABULARY, batches, mixed, model_of, plain_loss

from impq.estimate import estimate_game, model_game, tokens_hash
from impq.hf_model import batches_of
from impq.play import play
from impq.runner import BlockRunner
from impq.value import TableValue, exhaustive
from impq.walks import levels

IDS = torch.randint(2, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(4))
QUICK = {"group_size": 8, "n_permutations": 4}


def saved(game, folder):
    game.save(folder)
    return (folder / "game.json").read_bytes(), (folder / "game.safetensors").read_bytes()


def state_of(model):
    """Everything that must be as before."""
    return (
        {
            name: (hashlib.sha256(t.numpy().tobytes()).hexdigest(), t.dtype, t.device)
            for name, t in model.state_dict().items()
        },
        {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)},
        [(n, id(m), m.training, len(m._forward_pre_hooks), len(m._forward_hooks)) for n, m in model.named_modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
    )


class TestModelGame:
    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    def test_losses_are_those_of_the_quantised_model(self, architecture):
        model = model_of(architecture)
        game = model_game(model, batches(architecture), group_size=8)
        for coalition in (0, 0b010, 0b101, 0b111):
            level = levels(coalition, 3).tolist()
            weights = {(name, at): game.weights[name, at] for name in game.weights._transposed for at in (0, 1)}
            expected = plain_loss(mixed(model, game.header.players, weights, level), game.batches)
            assert game.value([coalition])[0] == pytest.approx(expected, abs=1e-5)

    def test_header(self):
        model = model_of("llama")
        game = model_game(model, IDS, bits=(8, 4, 2), group_size=8, granularity="group", name="mine")
        header = game.header
        assert (header.model_name, header.backend, header.bits, header.group_size) == ("mine", "rtn", (8, 4, 2), 8)
        assert [player.name for player in header.players[:2]] == ["model.layers.0.attention", "model.layers.0.mlp"]
        assert header.n_tokens == 3 * 11
        assert (header.v_high, header.v_low, header.depth) == (None, None, None)
        for player in header.players:
            sizes = [game.weights.nbytes(module) for module in player.modules]
            assert player.nbytes == tuple(map(sum, zip(*sizes, strict=True)))
            assert player.shapes == tuple(tuple(model.get_submodule(name).weight.shape) for name in player.modules)

    def test_bytes_outside_count_tied_weights_once(self):
        model = model_of("llama")  # tied embeddings
        header = model_game(model, IDS, group_size=8).header
        width, blocks = model.config.hidden_size, 3
        assert header.other_bytes == 4 * (VOCABULARY * width + (2 * blocks + 1) * width)

    def test_prune(self):
        game = model_game(model_of("llama"), IDS, group_size=8, payoff="prune")
        assert game.header.payoff == "prune"
        assert game.value([7])[0] != model_game(model_of("llama"), IDS, group_size=8).value([7])[0]

    def test_hessians_of_the_full_precision_model(self):
        model = model_of("llama")
        before = state_of(model)
        gptq, rtn = (model_game(model, IDS, backend=name, group_size=8) for name in ("gptq", "rtn"))
        assert state_of(model) == before
        assert gptq.header.backend == "gptq"
        assert gptq.value([7]) != rtn.value([7])

    def test_packed_and_resident_weights_are_the_same_game(self):
        packed, resident = (
            model_game(model_of("gpt2"), IDS, group_size=8, weights=kind) for kind in ("packed", "resident")
        )
        assert packed.header == resident.header
        assert packed.value([0, 5]) == resident.value([0, 5])

    def test_on_other_tokens(self):
        game = model_game(model_of("llama"), IDS, group_size=8, payoff="prune", cache_bytes=5000)
        other = game.on(batches_of(game.model, IDS[:2]))
        assert other.header.n_tokens == 22
        assert other.header.difference(game.header).startswith("calib_hash")
        assert replace(other.header, calib_hash=game.header.calib_hash, n_tokens=33) == game.header
        fresh = model_game(model_of("llama"), IDS[:2], group_size=8, payoff="prune")
        assert fresh.header == other.header
        assert other.value([0, 3]) == pytest.approx(fresh.value([0, 3]), abs=1e-6)
        assert other.value.cache_bytes == 5000

    def test_scores(self):
        game = model_game(model_of("llama"), IDS, group_size=8)
        assert game.score("lim").shape == (3,)
        with pytest.raises(ValueError, match=r"name must be one of llm_mq, .*, got 'magic'"):
            game.score("magic")


class TestEstimateGame:
    @pytest.mark.parametrize("granularity", ["block", "linear"])
    def test_efficiency_and_counts(self, granularity):
        told = []
        game = estimate_game(
            model_of("llama", 2), IDS, granularity=granularity, **QUICK, progress=lambda *now: told.append(now)
        )
        players = {"block": 2, "linear": 14}[granularity]
        assert game.shapley.sum() == pytest.approx(game.header.v_low - game.header.v_high, abs=1e-9)
        assert game.n_evaluations + game.n_memo_hits == 4 * (players - 1) + 2
        assert told

    def test_settings_of_the_walks_reach_the_header(self):
        game = estimate_game(
            model_of("llama", 4), IDS, **QUICK, antithetic=True, depth=2, direction="promote", seed=7, bits=(8, 2)
        )
        header = game.header
        assert (header.antithetic, header.depth, header.direction, header.seed, header.bits) == (
            True, 2, "promote", 7, (8, 2),
        )  # fmt: skip
        assert header.v_high is None

    def test_seeds_change_orders_not_losses(self):
        """Check 15."""
        games = [estimate_game(model_of("llama", 4), IDS, **QUICK, seed=seed, schedule="walk") for seed in (0, 1)]
        assert not np.array_equal(games[0].orders, games[1].orders)
        losses = [
            {
                c: loss
                for m, row in enumerate(game.losses)
                for c, loss in zip(game.walks.coalitions(m), row, strict=True)
            }
            for game in games
        ]
        shared = losses[0].keys() & losses[1].keys()
        assert len(shared) > 1
        assert all(losses[0][c] == losses[1][c] for c in shared)

    def test_names_of_blocks_do_not_matter(self):
        """Check 15: the same blocks under another name have the same values; two equal blocks have equal ones."""
        model = model_of("tuples", 3)
        renamed = copy.deepcopy(model)
        renamed.zoo = renamed._modules.pop("stack")
        type_ = type("Renamed", (type(model),), {"stack": property(lambda self: self._modules["zoo"])})
        renamed.__class__ = type_
        here, there = (estimate_game(m, batches("tuples"), **QUICK) for m in (model, renamed))
        assert [player.name for player in there.header.players] == ["zoo.0", "zoo.1", "zoo.2"]
        assert np.array_equal(here.shapley, there.shapley)

    def test_shards_stopping_and_schedules_are_passed_on(self):
        arguments = {"group_size": 8, "n_permutations": 9}
        whole = estimate_game(model_of("llama", 4), IDS, **arguments, schedule="walk")
        part = estimate_game(model_of("llama", 4), IDS, **arguments, share=(1, 2))
        stopped = estimate_game(model_of("llama", 4), IDS, **arguments, stop_when=lambda game: True)
        assert np.array_equal(part.losses, whole.losses[1::2])
        assert np.array_equal(stopped.losses, whole.losses[:2])


def test_the_interval_covers_the_exact_value_of_a_real_table():
    """Check 3: exhaustive tables of models, M = 20."""
    inside = []
    for seed in range(2):
        game = model_game(model_of("llama", 6, seed), IDS, bits=(4, 2), group_size="tensor", weights="resident")
        table = exhaustive(game.value, 6)
        exact = exact_shapley(table)
        assert exact.std() > 0.001
        for repetition in range(150):
            found = play(TableValue(table), replace(game.header, seed=1000 * seed + repetition), 20)
            low, high = found.ci().T
            inside.append((low <= exact) & (exact <= high))
    assert 0.92 <= np.mean(inside) <= 0.97


class TestModelIsUntouched:
    """Check 7."""

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    def test_after_a_game(self, architecture, training):
        model = model_of(architecture).train(training)
        before = state_of(model)
        estimate_game(model, batches(architecture), **QUICK)
        assert state_of(model) == before

    def test_in_half_precision(self):
        model = model_of("llama").to(torch.bfloat16)
        before = {name: tensor.view(torch.int16).clone() for name, tensor in model.state_dict().items()}
        estimate_game(model, IDS, **QUICK)
        assert all(torch.equal(before[name], t.view(torch.int16)) for name, t in model.state_dict().items())

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    @pytest.mark.parametrize("schedule", ["walk", "trie"])
    def test_after_an_interrupt_and_resumed(self, monkeypatch, tmp_path, error, schedule):
        monkeypatch.setattr("impq.play.CHUNK", 8)
        model = model_of("llama", 5).train()
        before, path = state_of(model), tmp_path / "game.jsonl"
        arguments = {"group_size": 8, "n_permutations": 12, "schedule": schedule}
        whole = saved(estimate_game(model, IDS, **arguments), tmp_path / "whole")
        run, left = BlockRunner._block, [50]

        def failing(self, *args):
            left[0] -= 1
            if not left[0]:
                raise error("in the middle")
            return run(self, *args)

        monkeypatch.setattr(BlockRunner, "_block", failing)
        with pytest.raises(error, match="in the middle"):
            estimate_game(model, IDS, **arguments, journal=path)
        monkeypatch.setattr(BlockRunner, "_block", run)
        assert state_of(model) == before
        kept = path.read_bytes()
        assert kept.count(b"\n") > 1 + 2
        resumed = estimate_game(model, IDS, **arguments, journal=path)
        assert path.read_bytes().startswith(kept)
        assert saved(resumed, tmp_path / "resumed") == whole
        assert state_of(model) == before

    def test_while_hessians_are_collected(self, monkeypatch):
        model = model_of("llama").train()
        before = state_of(model)
        layer = model.model.layers[1].mlp
        monkeypatch.setattr(layer, "forward", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt), raising=False)
        with pytest.raises(KeyboardInterrupt):
            model_game(model, IDS, backend="gptq", group_size=8)
        monkeypatch.undo()
        assert state_of(model) == before


class TestResume:
    """Check 13."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"calibration": IDS.flip(0)}, "calib_hash"),
            ({"bits": (8, 2)}, r"bits \[4, 2\], this run has \[8, 2\]"),
            ({"group_size": 4}, "group_size 8, this run has 4"),
            ({"model": model_of("llama", 3, seed=1)}, "model_hash"),
            ({"backend": "gptq"}, "backend rtn, this run has gptq"),
            ({"payoff": "prune"}, "payoff quantize, this run has prune"),
            ({"granularity": "group"}, "granularity block, this run has group"),
            ({"seed": 1}, "seed 0, this run has 1"),
        ],
    )
    def test_what_has_changed_is_named(self, tmp_path, change, words):
        path = tmp_path / "game.jsonl"
        arguments = {"model": model_of("llama"), "calibration": IDS, "journal": path, **QUICK}
        estimate_game(**arguments)
        before = path.read_bytes()
        with pytest.raises(ValueError, match=rf"journal game\.jsonl was made with {words}") as caught:
            estimate_game(**(arguments | change))
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == before

    def test_more_walks_keep_the_first_lines(self, tmp_path):
        path = tmp_path / "game.jsonl"
        arguments = {"group_size": 8, "journal": path, "schedule": "walk"}
        model = model_of("tuples", 5)
        estimate_game(model, batches("tuples"), n_permutations=20, **arguments)
        first = path.read_bytes().splitlines()
        game = estimate_game(model, batches("tuples"), n_permutations=50, **arguments)
        lines = path.read_bytes().splitlines()
        assert (len(first), len(lines), len(game.orders)) == (21, 51, 50)
        assert lines[:21] == first
        at_once = estimate_game(
            model, batches("tuples"), n_permutations=50, **(arguments | {"journal": tmp_path / "once.jsonl"})
        )
        assert saved(game, tmp_path / "more") == saved(at_once, tmp_path / "once")

    @pytest.mark.slow
    def test_killed_in_the_middle_of_a_walk(self, tmp_path):
        path = tmp_path / "game.jsonl"
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            [sys.executable, "-c", VICTIM, str(path)], stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            said = process.stdout.readline()
            process.kill()
        assert said == "half of walk 7\n"
        assert process.returncode == -9
        kept = path.read_bytes()
        assert kept.count(b"\n") == 1 + 7
        torn = kept + b'{"kind": "permutation", "index": 7, "order": [3, '
        path.write_bytes(torn)
        resumed = estimate_game(model_of("llama", 6), IDS, **KILLED, journal=path)
        whole = estimate_game(model_of("llama", 6), IDS, **KILLED)
        assert saved(resumed, tmp_path / "resumed") == saved(whole, tmp_path / "whole")
        assert path.read_bytes().startswith(kept)
        assert path.read_bytes().count(b"\n") == 1 + 20


KILLED = {"group_size": 8, "n_permutations": 20, "schedule": "walk"}
VICTIM = """
import sys, time
from pathlib import Path
from test_estimate import IDS, KILLED, model_of
from impq.estimate import estimate_game
from impq.runner import BlockRunner

path, run = Path(sys.argv[1]), BlockRunner.__call__

def stopping(runner, coalitions):
    if path.exists() and path.read_bytes().count(b"\\n") == 1 + 7:
        run(runner, coalitions[: len(coalitions) // 2])
        print("half of walk 7", flush=True)
        time.sleep(60)
    return run(runner, coalitions)

BlockRunner.__call__ = stopping
estimate_game(model_of("llama", 6), IDS, **KILLED, journal=path)
"""


class TestErrors:
    """Check 16, as they reach the caller."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"calibration": IDS[:0]}, "ids are empty"),
            ({"calibration": []}, "batches: at least one"),
            ({"calibration": IDS[:, :1]}, "one token per window"),
            ({"calibration": IDS + VOCABULARY}, "vocabulary"),
            ({"calibration": {"input_ids": IDS, "labels": torch.full_like(IDS, -100)}}, "no token is scored"),
            ({"bits": (4, 5)}, "5"),
            ({"bits": (2, 4)}, "bits must fall from high to low"),
            ({"bits": (4,)}, "widths|bits"),
            ({"backend": "magic"}, "backend"),
            ({"backend": "hqq", "group_size": 7}, "group_size"),
            ({"backend": "quanto", "bits": (4, 3)}, "3"),
            ({"blocks": "model.nothing"}, "no block list 'model.nothing'"),
            ({"granularity": "word"}, "granularity must be"),
            ({"payoff": "drop"}, "payoff must be"),
            ({"model": model_of("llama", 1)}, "at least two players"),
            ({"depth": 9}, "depth must be None or lie in 1..3"),
            ({"seed": -1}, "seed must not be negative"),
            ({"n_permutations": 0}, "n_permutations must be at least 1"),
        ],
    )
    def test_one_line_that_names_what_is_wrong(self, arguments, words):
        with pytest.raises(ValueError, match=words) as caught:
            estimate_game(**({"model": model_of("llama"), "calibration": IDS, **QUICK} | arguments))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("calibration", ["some text", [IDS], [[1, 2, 3]], None, 3])
    def test_what_is_no_calibration(self, calibration):
        with pytest.raises(TypeError, match="calibration must be token ids"):
            estimate_game(model_of("llama"), calibration, **QUICK)

    def test_token_ids_for_a_plain_module(self):
        with pytest.raises(TypeError, match="token ids need a model of transformers; give batches"):
            estimate_game(model_of("tuples"), IDS, **QUICK)

    def test_a_loss_that_is_not_finite_names_the_block(self, monkeypatch):
        model = model_of("llama")
        run = BlockRunner.__call__

        def collapsed(runner, coalitions):
            losses = run(runner, coalitions)
            return [np.inf if c == 0b010 else loss for c, loss in zip(coalitions, losses, strict=True)]

        monkeypatch.setattr(BlockRunner, "__call__", collapsed)
        with pytest.raises(ValueError, match=r"demoted last: step 1 \(model\.layers\.1 to 2 bits\)"):
            estimate_game(model, IDS, group_size=8, n_permutations=20)


class TestTokensHash:
    def test_depends_on_what_is_scored(self):
        model = model_of("llama")
        made = {
            tokens_hash(batches_of(model, given))
            for given in (
                IDS,
                IDS[:2],
                IDS.flip(0),
                {"input_ids": IDS, "labels": IDS.masked_fill(IDS < 9, -100)},
                {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)},
            )
        }
        assert len(made) == 5

    def test_is_the_same_again(self):
        model = model_of("llama")
        assert tokens_hash(batches_of(model, IDS)) == tokens_hash(batches_of(model, IDS.clone()))

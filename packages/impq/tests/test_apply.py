from dataclasses import replace
from pathlib import Path

import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.model_hash import model_hash
from safetensors.torch import save
from torch import Tensor, nn
from torch.func import functional_call

from impq.apply import applied_plan, apply_plan, load_applied, same_weights, save_applied
from impq.backend import get_backend
from impq.bit_plan import BitPlan
from impq.blocks import find_players
from impq.budget import Budget
from impq.gptq_backend import collect_hessians
from impq.player import Player
from impq.quantized_linear import PackedLinear
from impq.runner import Batch, BlockRunner
from impq.weights import QuantizedWeights, linear_weight

IDS = torch.arange(60).view(3, 20) % 50
WIDTHS = (4, 3, 2)


def language_model(architecture: str = "llama", seed: int = 0) -> nn.Module:
    return tiny_lm(50, architecture=architecture, layers=3, width=32, heads=2, seed=seed)


def run(model: nn.Module) -> None:
    model(IDS)


def plan_for(
    model: nn.Module, levels: tuple[int, ...] = (0, 2, 1), backend: str = "rtn", group_size: int = 24
) -> BitPlan:
    """Groups of 24 leave a ragged end in rows of 32 and 88 weights."""
    found = [(p.name, p.block, p.modules) for p in find_players(model)]
    quantiser, players = get_backend(backend), []
    for name, block, modules in found:
        shapes = tuple(tuple(linear_weight(model, module).shape) for module in modules)
        nbytes = tuple(sum(quantiser.nbytes(*shape, bits, group_size) for shape in shapes) for bits in WIDTHS)
        players.append(Player(name=name, block=block, modules=modules, shapes=shapes, nbytes=nbytes))
    return BitPlan(
        model_name="tiny",
        model_hash="",
        backend=backend,
        group_size=group_size,
        granularity="block",
        widths=WIDTHS,
        players=tuple(players),
        levels=levels,
        other_bytes=0,
        budget=Budget(avg_bits=3.0),
    )


def in_the_game(model: nn.Module, plan: BitPlan, hessians: dict[str, Tensor] | None = None) -> Tensor:
    """Logits of the coalition the plan describes, computed with swapped weights."""
    modules = [player.modules for player in plan.players]
    weights = QuantizedWeights(model, modules, plan.backend, WIDTHS, plan.group_size, hessians=hessians)
    swapped = {
        f"{module}.weight": weights[module, level]
        for player, level in zip(plan.players, plan.levels, strict=True)
        for module in player.modules
    }
    with torch.no_grad():
        return functional_call(model, swapped, (IDS,)).logits


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(IDS).logits


def stored_bytes(model: nn.Module) -> int:
    """Bytes of the codes, scales and zero-points that a quantised model holds; tied layers count once."""
    tensors = {
        tensor.data_ptr(): tensor.nbytes
        for module in model.modules()
        if isinstance(module, PackedLinear)
        for tensor in module.buffers(recurse=False)
    }
    return sum(tensors.values())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_file_round_trip_keeps_the_games_logits(architecture: str, tmp_path: Path) -> None:
    """Plan to JSON, applied, saved, loaded into another model of the architecture."""
    model = language_model(architecture)
    plan_for(model).save(tmp_path / "plan.json")
    plan = BitPlan.load(tmp_path / "plan.json")
    expected = in_the_game(model, plan)
    assert not torch.allclose(expected, logits(model), atol=1e-3)
    applied = apply_plan(model, plan)
    torch.testing.assert_close(logits(applied), expected, atol=1e-5, rtol=0)
    save_applied(applied, plan, tmp_path / "out")
    other = language_model(architecture, seed=1)
    loaded = load_applied(other, tmp_path / "out")
    assert torch.equal(logits(loaded), logits(applied))
    assert torch.equal(logits(other), logits(language_model(architecture, seed=1)))
    assert BitPlan.load(tmp_path / "out" / "plan.json") == plan


def test_stored_bytes_are_those_of_the_plan() -> None:
    model = language_model()
    for levels in ((0, 0, 0), (2, 2, 2), (0, 2, 1)):
        for group_size in (5, 24, 64):
            plan = plan_for(model, levels, group_size=group_size)
            applied = apply_plan(model, plan)
            assert stored_bytes(applied) == plan.quantised_bytes
            state = applied.state_dict()
            packed = [name for name in state if name.rsplit(".", 1)[-1] in ("codes", "scale", "zero")]
            assert sum(state[name].nbytes for name in packed) == plan.quantised_bytes


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_original_is_untouched_and_shared(architecture: str) -> None:
    model = language_model(architecture).train()
    handle = model.register_forward_hook(lambda *_: None)
    before = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    applied = apply_plan(model, plan_for(model))
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is before[name][0]
        assert torch.equal(tensor, before[name][1])
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    assert applied.training
    assert all(module.training for module in applied.modules())
    assert applied.get_input_embeddings().weight is model.get_input_embeddings().weight
    handle.remove()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_deployed_model_has_the_loss_of_its_coalition(architecture: str) -> None:
    """The runner's v(plan), walked to through other coalitions, is the applied model's own next-token loss."""
    model = language_model(architecture)
    plan = plan_for(model)
    weights = QuantizedWeights(model, [p.modules for p in plan.players], "rtn", WIDTHS, plan.group_size, keep="packed")
    value = BlockRunner(
        model, plan.players, weights, [Batch(inputs={"input_ids": IDS, "use_cache": False}, labels=IDS)], widths=3
    )
    found = value([0, 0b111111, plan.coalition])[-1]
    predicted = logits(apply_plan(model, plan))[:, :-1].reshape(-1, 50)
    assert found == pytest.approx(float(nn.functional.cross_entropy(predicted, IDS[:, 1:].reshape(-1))), abs=1e-5)


@pytest.mark.parametrize("name", ["hqq", "quanto"])
def test_deployed_with_another_backend(name: str) -> None:
    model = language_model()
    plan = plan_for(model, (0, 2, 0))
    applied = apply_plan(model, plan, backend=name, group_size=8)
    module = plan.players[1].modules[0]
    expected = get_backend(name).quantize_linear(linear_weight(model, module), 2, group_size=8)
    assert torch.equal(applied.get_submodule(module).packed(torch.float32).dequantize(), expected.dequantize())


@pytest.mark.parametrize(("name", "group_size"), [("hqq", 8), ("quanto", "row"), ("rtn", 5), ("gptq", 32)])
def test_the_saved_plan_states_what_is_stored(name: str, group_size: int | str, tmp_path: Path) -> None:
    model = language_model()
    plan = replace(plan_for(model, (0, 2, 0)), budget=Budget(bytes=plan_for(model, (0, 2, 0)).bytes))
    how = {"backend": name, "group_size": group_size, "sequential": name == "gptq"}
    applied = apply_plan(model, plan, run=run, **how)
    save_applied(applied, plan, tmp_path, **how)
    written = BitPlan.load(tmp_path / "plan.json")
    assert written.quantised_bytes == stored_bytes(applied)
    assert (written.backend, written.group_size, written.sequential) == (name, group_size, name == "gptq")
    assert (written.levels, written.budget) == (plan.levels, plan.budget)
    assert plan.within_budget
    assert written.within_budget == (stored_bytes(applied) <= plan.quantised_bytes)
    assert written == applied_plan(plan, **how)
    assert torch.equal(logits(load_applied(language_model(), tmp_path)), logits(applied))


def test_a_plan_that_counts_other_bytes_is_not_saved(tmp_path: Path) -> None:
    model = language_model()
    plan = plan_for(model, (0, 2, 0))
    applied = apply_plan(model, plan, backend="hqq", group_size=8)
    with pytest.raises(ValueError, match=r"plan: model\.layers\.0 has \d+ packed bytes.*backend rtn, group_size 24"):
        save_applied(applied, plan, tmp_path)
    with pytest.raises(ValueError, match=r"plan: model\.layers\.0 has"):
        save_applied(apply_plan(model, plan), replace(plan, levels=(2, 2, 0)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_weights_are_told() -> None:
    model = language_model()
    plan = replace(plan_for(model), model_hash=model_hash(model))
    assert same_weights(model, plan)
    assert not same_weights(language_model(seed=1), plan)
    assert not same_weights(language_model().bfloat16(), plan)


def test_gptq_uses_full_precision_inputs_unless_sequential(monkeypatch) -> None:
    model = language_model()
    plan = plan_for(model, (2, 2, 2), backend="gptq", group_size=32)
    names = list(plan.module_bits)
    hessians = collect_hessians(model, names, lambda: run(model))
    parallel = apply_plan(model, plan, run=run)
    torch.testing.assert_close(logits(parallel), in_the_game(model, plan, hessians), atol=1e-5, rtol=0)

    sequential = apply_plan(model, plan, run=run, sequential=True)
    slow = model
    monkeypatch.setattr("impq.apply._block_list", lambda *_: None)  # plans of one player are for this test only
    for player in plan.players:  # reference: each player in a model of its own whose earlier players are packed
        alone = replace(plan, players=(player,), levels=(2,))
        slow = apply_plan(slow, alone, run=run)
    assert torch.equal(logits(sequential), logits(slow))
    first, last = plan.players[0].modules[0], plan.players[2].modules[0]
    same = [torch.equal(sequential.get_submodule(n).codes, parallel.get_submodule(n).codes) for n in (first, last)]
    assert same == [True, False]


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.again = nn.Linear(8, 8), nn.Linear(8, 8)
            self.embedding, self.head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
            self.again.weight, self.head.weight = self.up.weight, self.embedding.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.again(self.up(self.embedding(ids))))

    model = Tied()
    player = Player(
        name="up", block=0, modules=("up",), shapes=((8, 8),), nbytes=(32 + 16 + 4, 24 + 16 + 3, 16 + 16 + 2)
    )
    plan = replace(plan_for(language_model()), players=(player,), levels=(1,), group_size=8)
    applied = apply_plan(model, plan)
    assert torch.equal(applied.again.codes, applied.up.codes)
    assert not torch.equal(applied.again.bias, applied.up.bias)
    assert stored_bytes(applied) == plan.quantised_bytes
    save_applied(applied, plan, tmp_path)
    loaded = load_applied(Tied(), tmp_path)
    assert torch.equal(loaded(IDS), applied(IDS))
    assert stored_bytes(loaded) == plan.quantised_bytes
    assert loaded.head.weight is loaded.embedding.weight
    assert (tmp_path / "packed.safetensors").stat().st_size < 50 * 8 * 4 + 2000


def test_plans_for_another_model_name_the_first_mismatch(tmp_path: Path) -> None:
    plan = plan_for(language_model())
    wider = tiny_lm(50, layers=3, width=40, heads=2)
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj is \(40, 40\) in the model and \(32, 32\)"):
        apply_plan(wider, plan)
    shallow = tiny_lm(50, layers=2, width=32, heads=2)
    with pytest.raises(ValueError, match=r"no linear model\.layers\.2\.self_attn\.q_proj"):
        apply_plan(shallow, plan)
    applied = apply_plan(language_model(), plan)
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj is packed already"):
        apply_plan(applied, plan)
    save_applied(applied, plan, tmp_path)
    for other in (wider, shallow):
        with pytest.raises(ValueError, match="plan: "):
            load_applied(other, tmp_path)
    with pytest.raises(ValueError, match=r"model: lm_head\.weight is \(60, 32\), but \(50, 32\)"):
        load_applied(tiny_lm(60, layers=3, width=32, heads=2), tmp_path)


def test_wrong_calls_are_refused(tmp_path: Path) -> None:
    model = language_model()
    plan = plan_for(model)
    with pytest.raises(ValueError, match="run is missing"):
        apply_plan(model, plan, backend="gptq")
    with pytest.raises(ValueError, match="sequential"):
        apply_plan(model, plan, run=run, sequential=True)
    with pytest.raises(ValueError, match=r"layers\.2.*bits 3 is not supported by backend quanto"):
        apply_plan(model, plan, backend="quanto", group_size=8)
    with pytest.raises(ValueError, match="group_size"):
        apply_plan(model, replace(plan, group_size=None))
    with pytest.raises(ValueError, match="no packed layer"):
        save_applied(model, plan, tmp_path)
    with pytest.raises(ValueError, match=r"plan\.json"):
        load_applied(model, tmp_path)
    plan.save(tmp_path / "plan.json")
    for content in (b"no tensors", save({"codes": IDS}), save({"codes": IDS}, metadata={"impq": "{}"})):
        (tmp_path / "packed.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="not a quantised model"):
            load_applied(model, tmp_path)


def test_a_plan_that_leaves_blocks_out_is_for_another_model() -> None:
    model = language_model()
    plan = plan_for(model, (0, 2, 0))
    shorter = replace(plan, players=plan.players[:2], levels=plan.levels[:2])
    with pytest.raises(ValueError, match="says nothing of block 2 of 3"):
        apply_plan(model, shorter)

import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny_training import directions_of, lm, move, padded, rows
from torch.testing import assert_close

from procon.projection_capture import ProjectionCapture
from procon.reference import (
    ROUNDING,
    BaseModel,
    CachedProjections,
    base_weights,
    frozen_copy,
    has_learned_positions,
    without_rounding,
)
from procon.samples import Samples


def adapted(dropout=0.0):
    model = get_peft_model(lm(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=dropout))
    move(model)
    return model.train()


def start(batch):
    model, directions = lm(), directions_of(lm())
    capture = ProjectionCapture(model, directions)
    with torch.no_grad(), capture:
        model(batch["input_ids"], attention_mask=batch["attention_mask"])
    return capture.take()


def test_adapter_off_and_frozen_copy_give_the_projections_of_the_start():
    batch = padded(rows())
    samples = Samples.of(batch, "response")
    model = adapted(dropout=0.5)
    copied = frozen_copy(model)
    move(model)
    for source in (model, copied):
        z_0 = BaseModel(source, directions_of(lm()))(batch, samples)
        assert_close(z_0, start(batch))
        assert not z_0.requires_grad
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    assert not any("lora" in name for name, _ in copied.named_parameters())


def test_the_model_in_training_is_left_as_it_was():
    model = adapted()
    frozen = [p for name, p in model.named_parameters() if "lora_A" in name]
    for parameter in frozen:
        parameter.requires_grad_(False)  # as LoRA-FA does
    model.get_base_model().lm_head.eval()
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    training = [module.training for module in model.modules()]
    with base_weights(model):
        assert not any(module.training for module in model.modules())
    with pytest.raises(KeyError), base_weights(model):
        raise KeyError
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert [module.training for module in model.modules()] == training


def test_the_cache_runs_the_base_model_once_a_sample(tmp_path):
    data, runs = rows(), []
    base = BaseModel(lm(), directions_of(lm()))
    counted = lambda inputs: runs.append(1) or base(inputs)  # noqa: E731
    counted.directions = base.directions
    for _ in range(2):  # the second time from disk
        cached = CachedProjections(counted, tmp_path, "tiny", "float32", absolute=False)
        cached.fill([(batch, Samples.of(batch, "response")) for batch in (padded(data[:4]), padded(data[4:]))])
    assert len(runs) == 2
    batch = padded(data[::-1], "left")
    samples = Samples.of(batch, "response")
    assert_close(cached(batch, samples)[samples.constrained], start(batch)[samples.constrained])
    other = CachedProjections(counted, tmp_path, "another model", "float32", absolute=False)
    assert len(other.cache) == 0


@given(size=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_only_differences_of_rounding_size_are_dropped(size, seed):
    rng = torch.Generator().manual_seed(seed)
    z_0 = size * torch.randn(2, 8, 3, generator=rng)
    held = torch.rand(2, 8, generator=rng) < 0.7
    held[0, 0] = True
    scale = z_0[held].square().mean(0).sqrt()
    near, far = z_0 + 0.3 * ROUNDING * scale, z_0 + 3 * ROUNDING * scale + 1e-5 * z_0.abs()
    assert torch.equal(without_rounding(near, z_0, held), near)
    assert torch.equal(without_rounding(far, z_0, held), z_0)


def test_learned_positions_are_recognised():
    assert has_learned_positions(tiny_lm(9, architecture="gpt2", width=16))
    assert not has_learned_positions(tiny_lm(9, width=16))

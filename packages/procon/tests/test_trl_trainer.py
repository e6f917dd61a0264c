import json
from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
import torch
from aisec_common.torch.blocks import find_blocks
from datasets import Dataset
from peft import LoraConfig, PeftModel, PromptTuningConfig, TaskType
from tiny_training import TOKENIZER, arguments, directions_of, lm, losses, make, packed, padded, rows, trained_weights
from torch.testing import assert_close
from trl import SFTTrainer

from procon.config import Norm, ProConConfig, Reduction
from procon.trl_trainer import ProConTrainer

LAYOUTS = {"right": padded, "left": lambda data: padded(data, "left"), "packed": packed}


def term_of(trainer, batch):
    """The projection term of a batch, as logged."""
    trainer.model.train()
    trainer.compute_loss(trainer.model, dict(batch))
    return trainer._metrics["train"]["procon"][-1]


def gradients(trainer, batch, **settings):
    trainer.model.train()
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, dict(batch), **settings).backward()
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def slow_term(trainer, data, layers=(0, 1)):
    """The mean of |r·x - r·x_0| over layers and response tokens, one sample and one token at a time."""
    directions, states = directions_of(lm()), []
    _, blocks = find_blocks(trainer.model)
    trainer.model.eval()
    for row in data:
        for adapter in (True, False):
            seen = []
            hooks = [blocks[k].register_forward_hook(lambda m, a, out, seen=seen: seen.append(out)) for k in layers]
            with torch.no_grad():
                if adapter:
                    trainer.model(torch.tensor([row["input_ids"]]))
                else:
                    with trainer.model.disable_adapter():
                        trainer.model(torch.tensor([row["input_ids"]]))
            for hook in hooks:
                hook.remove()
            states.append([out[0] if isinstance(out, tuple) else out for out in seen])
    differences = []
    for k, row in enumerate(data):
        for i, layer in enumerate(layers):
            for t, label in enumerate(row["labels"]):
                if label != -100:
                    now, before = states[2 * k][i][0, t], states[2 * k + 1][i][0, t]
                    differences.append(abs(float(directions[layer] @ now) - float(directions[layer] @ before)))
    return sum(differences) / len(differences)


# ---------------------------------------------------------------- the term


def test_without_alpha_it_is_trl_to_the_bit(tmp_path):
    args = {"num_train_epochs": 2, "per_device_train_batch_size": 2}
    ours, theirs = (
        make(tmp_path, kind, procon={"alpha": 0.0}, args=args)
        if kind is ProConTrainer
        else make(tmp_path, kind, args=args)
        for kind in (ProConTrainer, SFTTrainer)
    )
    for trainer in (ours, theirs):
        trainer.train()
    assert [e["loss"] for e in losses(ours)] == [e["loss"] for e in losses(theirs)]
    assert [e["grad_norm"] for e in losses(ours)] == [e["grad_norm"] for e in losses(theirs)]
    for name, weight in trained_weights(theirs).items():
        assert torch.equal(trained_weights(ours)[name], weight), name


@pytest.mark.parametrize("reference", ["adapter_off", "cache", "model"])
def test_a_fresh_adapter_has_no_term_and_no_gradient_of_it(tmp_path, reference):
    batch = padded(rows(), "left")
    ours = make(tmp_path, procon={"alpha": 100.0, "reference": reference})
    assert term_of(ours, batch) == pytest.approx(0, abs=1e-6)
    plain = gradients(make(tmp_path, procon={"alpha": 0.0}), batch)
    for name, gradient in gradients(ours, batch).items():
        assert_close(gradient, plain[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_references_agree_with_each_other_and_with_a_loop(tmp_path, layout):
    data = rows()
    found = {}
    for reference, dtype in (
        ("adapter_off", "float32"),
        ("cache", "float32"),
        ("model", "float32"),
        ("cache", "float16"),
    ):
        trainer = make(tmp_path, procon={"alpha": 1.0, "reference": reference, "cache_dtype": dtype}, moved=True)
        found[reference, dtype] = term_of(trainer, LAYOUTS[layout](data))
    slow = slow_term(trainer, data)
    assert slow > 1e-3
    for (_, dtype), term in found.items():
        assert term == pytest.approx(slow, rel=1e-3 if dtype == "float16" else 1e-5)


def test_packing_changes_no_norm_and_no_reduction(tmp_path):
    trainer = make(tmp_path, procon={"alpha": 1.0, "tokens": "both"}, moved=True)
    for norm, reduction in product(get_args(Norm), get_args(Reduction)):
        trainer.procon = replace(trainer.procon, norm=norm, reduction=reduction)
        in_packs, in_rows = (term_of(trainer, layout(rows())) for layout in (packed, padded))
        assert in_packs == pytest.approx(in_rows, rel=1e-5), (norm, reduction)


def test_prompt_tokens_do_not_count(tmp_path):
    trainer = make(tmp_path, procon={"alpha": 1.0, "layers": (-1,)}, moved=True)
    batch = padded(rows())
    before = term_of(trainer, batch)

    def disturb(module, arguments, output):
        states = output[0] if isinstance(output, tuple) else output
        if states.requires_grad:
            states = torch.where((batch["labels"] == -100)[..., None], states + 7, states)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    block = find_blocks(trainer.model)[1][-1]
    handle = block.register_forward_hook(disturb)  # of the last block: no response token sees it
    assert term_of(trainer, batch) == before
    handle.remove()


def test_the_term_moves_gradients_also_when_outputs_are_asked_for(tmp_path):
    batch = padded(rows())
    strong, plain = (make(tmp_path, procon={"alpha": alpha}, moved=True) for alpha in (5.0, 0.0))
    with_term, without = gradients(strong, batch), gradients(plain, batch)
    assert max(float((with_term[n] - without[n]).abs().max()) for n in without) > 1e-3
    strong.model.zero_grad()
    with pytest.warns(FutureWarning, match="return_outputs"):
        loss, outputs = strong.compute_loss(strong.model, dict(batch), return_outputs=True)
    loss.backward()
    assert outputs.logits is not None
    for name, parameter in strong.model.named_parameters():
        if parameter.requires_grad:
            assert_close(parameter.grad, with_term[name])


@pytest.mark.parametrize(
    "procon",
    [
        {"alpha": 0.0},
        {"alpha": 5.0},
        {"alpha": 5.0, "reduction": "paper_sum"},
        {"alpha": 5.0, "norm": "l2_tokens"},
        {"alpha": 5.0, "tokens": "both"},
    ],
    ids=str,
)
def test_accumulation_equals_one_batch(tmp_path, procon):
    weights = []
    for size, parts in ((8, 1), (2, 4)):
        args = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "optim": "sgd"}
        trainer = make(tmp_path, procon=procon, moved=True, args=args | {"max_grad_norm": 0.0})
        trainer.train()
        weights.append(trained_weights(trainer))
        weights[-1]["logged"] = torch.tensor(losses(trainer)[0].get("procon", 0.0))
    for name, weight in weights[0].items():
        assert_close(weights[1][name], weight, rtol=1e-5, atol=1e-7)


def test_activation_checkpointing_changes_nothing(tmp_path):
    weights = []
    for checkpointing in (False, True):
        args = {"activation_checkpointing": checkpointing, "per_device_train_batch_size": 4, "num_train_epochs": 2}
        trainer = make(tmp_path, procon={"alpha": 5.0}, moved=True, args=args)
        trainer.train()
        weights.append(trained_weights(trainer))
    for name, weight in weights[0].items():
        assert_close(weights[1][name], weight)


def test_the_heavier_alpha_is_the_less_the_projections_of_training_rows_move(tmp_path):
    moved = []
    for alpha in (0.0, 1.0, 10.0):
        trainer = make(tmp_path, procon={"alpha": alpha, "reference": "cache"}, args={"num_train_epochs": 10})
        trainer.train()
        moved.append(slow_term(trainer, rows()))
    assert moved[0] > moved[1] > 2 * moved[2] > 0


def test_normalize_divides_by_the_spread_of_the_reference(tmp_path):
    trainer = make(tmp_path, procon={"alpha": 1.0, "normalize": True}, moved=True, args={"learning_rate": 0.0})
    trainer.train()
    states = []
    base = find_blocks(trainer.model)[1]
    hooks = [block.register_forward_hook(lambda m, a, out: states.append(out)) for block in base]
    batch = padded(rows())
    with torch.no_grad(), trainer.model.disable_adapter():
        trainer.model(batch["input_ids"], attention_mask=batch["attention_mask"])
    for hook in hooks:
        hook.remove()
    held = batch["labels"] != -100
    for layer, out in enumerate(states):
        spread = float((out[held] @ directions_of(lm())[layer]).std())
        assert losses(trainer)[0][f"procon_scale_{layer}"] == pytest.approx(spread, rel=1e-4)
        assert float(trainer.procon_scale[layer]) == pytest.approx(spread, rel=1e-4)
    control = make(
        tmp_path,
        procon={"alpha": 1.0, "normalize": True},
        directions=directions_of(lm()).random(1),
        scale_directions=directions_of(lm()),
    )
    control.train()
    assert_close(control.procon_scale, trainer.procon_scale)


def test_evaluation_is_the_cross_entropy_alone(tmp_path):
    trainer = make(tmp_path, procon={"alpha": 50.0}, moved=True)
    plain = make(tmp_path, SFTTrainer, moved=True)
    data = Dataset.from_list(rows(4, seed=1))
    assert trainer.evaluate(data)["eval_loss"] == pytest.approx(plain.evaluate(data)["eval_loss"])


# ---------------------------------------------------------------- full fine-tuning


def test_full_fine_tuning_with_a_frozen_copy_or_a_cache(tmp_path):
    found = []
    for reference in ("model", "cache"):
        trainer = make(
            tmp_path / reference,
            lora=False,
            procon={"alpha": 1.0, "reference": reference},
            args={"num_train_epochs": 4},
        )
        trainer.train()
        found.append([entry["procon"] for entry in losses(trainer)])
    assert found[0][0] == 0
    assert found[0][-1] > 1e-4
    assert found[1] == pytest.approx(found[0], rel=1e-4)


# ---------------------------------------------------------------- schedule, resume, files


def test_alpha_is_logged_at_every_step_and_switches_at_the_epoch_boundary_also_after_a_resume(tmp_path):
    procon = {"alpha": 2.0, "schedule": "warmup", "warmup_epochs": 2, "reference": "cache"}
    args = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    whole = make(tmp_path, procon=procon, args=args)
    whole.train()
    assert [entry["procon_alpha"] for entry in losses(whole)] == [2.0] * 4 + [0.0] * 2
    assert ["procon" in entry for entry in losses(whole)] == [True] * 4 + [False] * 2
    again = make(tmp_path, procon=procon, args=args)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for before, after in zip(losses(whole)[3:], losses(again)[3:], strict=True):
        for name in ("step", "procon_alpha", "loss"):
            assert after[name] == pytest.approx(before[name]), name
    for name, weight in trained_weights(whole).items():
        assert_close(trained_weights(again)[name], weight)


def test_a_schedule_of_ones_own_and_warm_up_in_steps(tmp_path):
    args = {"per_device_train_batch_size": 4, "num_train_epochs": 2}
    trainer = make(tmp_path, alpha_schedule=lambda progress: progress / 4, args=args)
    trainer.train()
    assert [entry["procon_alpha"] for entry in losses(trainer)] == [0.0, 0.125, 0.25, 0.375]
    warm = {"alpha": 1.0, "schedule": "warmup", "warmup_epochs": 1.5}
    trainer = make(tmp_path, procon=warm, args={"per_device_train_batch_size": 4, "max_steps": 2})
    trainer.train()
    assert [entry["procon_alpha"] for entry in losses(trainer)] == [1.0] * 3 + [0.0] * 2


def test_the_saved_adapter_needs_nothing_of_ours(tmp_path):
    trainer = make(tmp_path, procon={"alpha": 1.0})
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    loaded = PeftModel.from_pretrained(lm(), tmp_path / "out")
    batch = padded(rows())
    batch.pop("labels")
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, trainer.model.eval()(**batch).logits)
    assert json.loads((tmp_path / "out" / "procon.json").read_text())["alpha"] == 1.0


def test_safety_data_are_mixed_in(tmp_path):
    safety = Dataset.from_list(rows(3, seed=5))
    trainer = make(tmp_path, procon={"alpha": 0.0}, safety_dataset=safety)
    ids = sorted(trainer.train_dataset["input_ids"])
    assert ids == sorted(row["input_ids"] for row in rows() + rows(3, seed=5))
    trainer.train()


# ---------------------------------------------------------------- what is refused


def test_misuse_is_one_line(tmp_path):
    def message(error, **settings):
        with pytest.raises(error) as raised:
            make(tmp_path, **settings)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "reference='cache' or 'model'" in message(ValueError, lora=False, procon={})
    assert "weights" in message(ValueError, directions=directions_of(lm(seed=1)))
    assert "columns" in message(ValueError, safety_dataset=Dataset.from_dict({"text": ["w1"]}))
    assert "scale_directions" in message(ValueError, scale_directions=directions_of(lm()))
    assert "alpha_schedule" in message(ValueError, procon={"schedule": "warmup"}, alpha_schedule=lambda p: 1.0)
    assert "alpha_schedule" in message(TypeError, alpha_schedule=0.5)
    streamed = Dataset.from_list(rows()).to_iterable_dataset()
    with pytest.raises(ValueError, match="train_dataset is streamed"):
        ProConTrainer(
            lm(),
            arguments(tmp_path, max_steps=1),
            train_dataset=streamed,
            processing_class=TOKENIZER,
            directions=directions_of(lm()),
            procon=ProConConfig(reference="cache"),
            peft_config=LoraConfig(),
        )
    with pytest.raises(ValueError, match="prompt learning"):
        ProConTrainer(
            lm(),
            arguments(tmp_path),
            train_dataset=Dataset.from_list(rows()),
            processing_class=TOKENIZER,
            directions=directions_of(lm()),
            peft_config=PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2),
        )


def test_a_foreign_checkpoint_is_refused(tmp_path):
    args = {"save_strategy": "epoch"}
    make(tmp_path / "sft", SFTTrainer, args=args).train()
    mine = make(tmp_path, procon={"alpha": 1.0}, args=args)
    for checkpoint in (tmp_path / "sft" / "checkpoint-1", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="says what it was made with"):
            mine.train(resume_from_checkpoint=str(checkpoint))
    with pytest.raises(ValueError, match="there is no checkpoint"):
        mine.train(resume_from_checkpoint=True)
    mine.train()
    other = make(tmp_path, procon={"alpha": 1.0}, directions=directions_of(lm(), seed=3), args=args)
    with pytest.raises(ValueError, match="another directions"):
        other.train(resume_from_checkpoint=True)


def test_a_batch_without_response_warns_once_and_has_no_term(tmp_path):
    trainer = make(tmp_path, procon={"alpha": 1.0}, moved=True)
    batch = padded(rows())
    batch["labels"] = torch.full_like(batch["labels"], -100)
    with pytest.warns(UserWarning, match="no tokens to hold"):
        assert term_of(trainer, batch) == 0
    assert all(gradient.eq(0).all() for gradient in gradients(trainer, batch).values())  # a second warning would raise


def test_projections_that_are_not_finite_are_refused(tmp_path):
    trainer = make(tmp_path, procon={"alpha": 1.0})
    with torch.no_grad():
        next(p for n, p in trainer.model.named_parameters() if "lora_B" in n).fill_(float("nan"))
    with pytest.raises(ValueError, match="projection term is nan at step 1"):
        term_of(trainer, padded(rows()))


def test_a_sample_that_the_pre_pass_has_not_seen_is_refused(tmp_path):
    trainer = make(tmp_path, procon={"alpha": 1.0, "reference": "cache"})
    with pytest.raises(ValueError, match="use reference='adapter_off'"):
        term_of(trainer, padded(rows(4, seed=9)))

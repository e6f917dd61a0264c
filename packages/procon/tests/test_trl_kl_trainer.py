import pytest
import torch
from tiny_training import lm, make, packed, padded, rows, trained_weights
from torch.testing import assert_close
from transformers import CohereConfig, CohereForCausalLM
from trl import SFTTrainer

from procon.trl_kl_trainer import KLTrainer


def slow_divergence(trainer, data):
    """Mean over response tokens of sum p log(p / q), from whole logits, a sample at a time."""
    trainer.model.eval()
    found = []
    for row in data:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            q = trainer.model(ids).logits[0].softmax(-1)
            with trainer.model.disable_adapter():
                p = trainer.model(ids).logits[0].softmax(-1)
        for t, label in enumerate(row["labels"]):
            if label != -100:
                found.append(float((p[t - 1] * (p[t - 1] / q[t - 1]).log()).sum()))
    return sum(found) / len(found)


@pytest.mark.parametrize("layout", [padded, lambda data: padded(data, "left"), packed], ids=["right", "left", "packed"])
def test_the_divergence_is_that_of_a_loop(tmp_path, layout):
    trainer = make(tmp_path, KLTrainer, beta=1.0, moved=True)
    trainer.model.train()
    trainer.compute_loss(trainer.model, layout(rows()))
    slow = slow_divergence(trainer, rows())
    assert slow > 1e-4
    assert trainer._metrics["train"]["kl"][-1] == pytest.approx(slow, rel=1e-3)


def test_without_beta_it_is_trl_and_with_it_training_stays_near_the_base(tmp_path):
    args, found = {"num_train_epochs": 10}, []
    for kind, settings in ((SFTTrainer, {}), (KLTrainer, {"beta": 0.0}), (KLTrainer, {"beta": 100.0})):
        trainer = make(tmp_path, kind, args=args, **settings)
        trainer.train()
        found.append((trained_weights(trainer), slow_divergence(trainer, rows())))
    for name, weight in found[0][0].items():
        assert torch.equal(found[1][0][name], weight)
    assert found[2][1] < found[1][1] / 2


def test_accumulation_equals_one_batch(tmp_path):
    weights = []
    for size, parts in ((8, 1), (2, 4)):
        args = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "optim": "sgd"}
        trainer = make(tmp_path, KLTrainer, beta=5.0, moved=True, args=args | {"max_grad_norm": 0.0})
        trainer.train()
        weights.append(trained_weights(trainer))
    for name, weight in weights[0].items():
        assert_close(weights[1][name], weight, rtol=1e-5, atol=1e-7)


def test_misuse_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="beta must be finite"):
        make(tmp_path, KLTrainer, beta=-1.0)
    with pytest.raises(ValueError, match="needs an adapter"):
        make(tmp_path, KLTrainer, beta=1.0, lora=False)
    config = CohereConfig(
        vocab_size=len(lm().get_input_embeddings().weight),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        logit_scale=0.1,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    with torch.random.fork_rng(devices=[]), pytest.raises(ValueError, match="logit_scale"):
        make(tmp_path, KLTrainer, beta=1.0, model=CohereForCausalLM(config))

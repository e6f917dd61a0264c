from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from aisec_common.torch.hf_tiny_lm import tiny_lm, train_tiny_lm  # noqa: E402
from aisec_common.torch.hf_tokenizer import word_tokenizer  # noqa: E402
from torch import Tensor  # noqa: E402

BOTH = pytest.mark.parametrize("architecture", ["llama", "gpt2"])


def parameters(model: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


@BOTH
def test_the_seed_alone_decides_and_the_global_generator_is_left_alone(architecture: str) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = tiny_lm(40, architecture=architecture, width=16, heads=2, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = (tiny_lm(40, architecture=architecture, width=16, heads=2, seed=seed) for seed in (3, 4))
    assert torch.equal(parameters(first), parameters(again))
    assert not torch.equal(parameters(first), parameters(other))
    assert not first.training


@BOTH
def test_sizes_and_class_are_those_asked_for(architecture: str, tmp_path: Path) -> None:
    model = tiny_lm(40, architecture=architecture, layers=3, width=24, heads=2, context=9)
    assert type(model).__name__ == {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel"}[architecture]
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (3, 24, 2)
    assert (config.vocab_size, config.max_position_embeddings) == (40, 9)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    assert torch.equal(parameters(loaded), parameters(model))


def test_a_tokenizer_gives_size_and_special_ids() -> None:
    tokenizer = word_tokenizer(["a", "b"])
    config = tiny_lm(tokenizer).config
    assert config.vocab_size == len(tokenizer) == 6
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 2, 3)
    assert tiny_lm(6).config.eos_token_id is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"vocabulary": 0}, "vocabulary must be at least 1"),
        ({"width": 20, "heads": 4}, "heads must divide width into an even size"),
        ({"architecture": "mamba"}, "architecture must be 'llama' or 'gpt2', got 'mamba'"),
    ],
)
def test_bad_sizes_are_refused(change: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        tiny_lm(**{"vocabulary": 10, **change})


def successors(seed: int, rows: int = 16) -> Iterator[dict[str, Tensor]]:
    """Rows that count upwards modulo 20 from a random start; the first two tokens carry no loss."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        ids = (torch.randint(20, (rows, 1), generator=generator) + torch.arange(8)) % 20
        labels = ids.clone()
        labels[:, :2] = -100
        yield {"input_ids": ids, "labels": labels}


@BOTH
def test_it_learns_to_count(architecture: str, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_lm(20, architecture=architecture, layers=1, width=32, heads=2)
    calls: list[tuple[int, int]] = []
    losses = train_tiny_lm(model, successors(0), steps=120, progress=lambda *call: calls.append(call))
    assert len(losses) == 120
    assert losses[0] == pytest.approx(torch.tensor(20.0).log().item(), abs=0.3)
    assert losses[-1] < 0.3
    assert calls == [(step, 120) for step in range(1, 121)]
    assert not model.training
    assert caplog.messages == []
    with torch.no_grad():
        assert model(torch.tensor([[7, 8, 9]])).logits[0, -1].argmax() == 10


def test_training_twice_gives_the_same_model_whatever_the_global_seed() -> None:
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(tiny_lm(20, layers=1, width=16, heads=2))
        train_tiny_lm(models[-1], successors(0), steps=5)
    assert torch.equal(parameters(models[0]), parameters(models[1]))


def test_one_step_is_adamw_on_the_clipped_gradient() -> None:
    model, reference = (tiny_lm(20, layers=1, width=16, heads=2) for _ in range(2))
    batch = next(successors(0))
    losses = train_tiny_lm(model, [batch], steps=1, learning_rate=0.01)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.01, weight_decay=0.01)
    logits = reference(batch["input_ids"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    loss = -logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0][labels != -100].mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    optimizer.step()
    assert losses == [pytest.approx(loss.item(), rel=1e-5)]
    torch.testing.assert_close(parameters(model), parameters(reference), atol=1e-4, rtol=0)


def test_the_learning_rate_falls_to_nought_and_frozen_parameters_stay() -> None:
    model = tiny_lm(20, layers=1, width=16, heads=2)
    model.get_input_embeddings().weight.requires_grad_(False)
    frozen = model.get_input_embeddings().weight.clone()
    states: list[Tensor] = []

    def remember(done: int, steps: int) -> None:
        states.append(parameters(model).detach().clone())

    train_tiny_lm(model, successors(0), steps=40, progress=remember)
    assert torch.equal(model.get_input_embeddings().weight, frozen)
    assert (states[-1] - states[-2]).norm() < 0.1 * (states[1] - states[0]).norm()


def test_misuse_is_told() -> None:
    model = tiny_lm(20, layers=1, width=16, heads=2)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        train_tiny_lm(model, successors(0), steps=0)
    with pytest.raises(ValueError, match="batches ended after 1 of 3 steps"):
        train_tiny_lm(model, [next(successors(0))], steps=3)
    nothing = next(successors(0))
    nothing["labels"] = torch.full_like(nothing["labels"], -100)
    with pytest.raises(ValueError, match="the loss is nan at step 1"):
        train_tiny_lm(model, [nothing], steps=1)
    assert not model.training
    with pytest.raises(ValueError, match="no parameter with requires_grad"):
        train_tiny_lm(model.requires_grad_(False), successors(0), steps=1)


def test_the_learning_rate_rises_over_the_warmup_and_falls_to_zero(monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    row = torch.tensor([[1, 2, 3, 4]])
    model = tiny_lm(10, layers=1, width=16, heads=2)
    train_tiny_lm(model, [{"input_ids": row, "labels": row}] * 10, steps=10, learning_rate=1.0e-2, warmup=0.3)
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, *(0.01 * k / 7 for k in range(6, 0, -1))])
    with pytest.raises(ValueError, match="warmup"):
        train_tiny_lm(model, [{"input_ids": row, "labels": row}], steps=1, warmup=1.0)

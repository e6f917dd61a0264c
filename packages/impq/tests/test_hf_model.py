import numpy as np
import pytest
import torch
from aisec_common.torch.hf_tokenizer import bpe_tokenizer
from aisec_common.torch.model_hash import model_hash
from tiny_models import VOCABULARY, model_of
from transformers import AutoTokenizer

from impq.hf_model import batches_of, load_model, nll, token_windows

TEXT = "the quick brown fox jumps over the lazy dog. " * 8


@pytest.fixture(scope="module")
def tokenizer():
    return bpe_tokenizer([TEXT], 280)


@pytest.fixture(scope="module")
def model():
    return model_of("llama")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(VOCABULARY, (5, 8), generator=torch.Generator().manual_seed(0))


class TestLoadModel:
    def test_round_trip(self, tmp_path, model, tokenizer):
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        loaded, read = load_model(str(tmp_path), device="cpu")
        assert model_hash(loaded) == model_hash(model)
        assert not loaded.training
        assert read(TEXT)["input_ids"] == AutoTokenizer.from_pretrained(tmp_path)(TEXT)["input_ids"]
        half, _ = load_model(str(tmp_path), device="cpu", dtype=torch.bfloat16)
        assert half.dtype == torch.bfloat16

    def test_nothing_there(self, tmp_path):
        with pytest.raises(ValueError, match=r"no config.json"):
            load_model(str(tmp_path))

    def test_packed_weights_are_no_checkpoint(self, tmp_path, model, tokenizer):
        model.config.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / "packed.safetensors").touch()
        with pytest.raises(
            ValueError, match=r"holds packed weights; load them with impq\.apply\.load_applied"
        ) as caught:
            load_model(str(tmp_path))
        assert "\n" not in str(caught.value)


class TestTokenWindows:
    def test_first_tokens_in_order(self, tokenizer):
        whole = tokenizer(TEXT)["input_ids"]
        windows = token_windows(tokenizer, TEXT, 39, 12)
        assert windows.shape == (3, 12)
        assert windows.flatten().tolist() == whole[:36]

    @pytest.mark.parametrize(
        ("text", "n_tokens", "window", "message"),
        [
            (TEXT, 40, 1, "window must be at least 2"),
            (TEXT, 3, 4, "n_tokens must be at least one window of 4"),
            ("", 4, 4, "text has 0 tokens, 4 are wanted"),
            (TEXT, 10**6, 100, "1000000 are wanted; give a longer text"),
        ],
    )
    def test_errors(self, tokenizer, text, n_tokens, window, message):
        with pytest.raises(ValueError, match=message):
            token_windows(tokenizer, text, n_tokens, window)


class TestBatchesOf:
    def test_micro_batches(self, model, ids):
        made = batches_of(model, ids, 2)
        assert [len(batch.labels) for batch in made] == [2, 2, 1]
        assert torch.equal(torch.cat([batch.labels for batch in made]), ids)
        assert torch.equal(torch.cat([batch.inputs["input_ids"] for batch in made]), ids)
        assert all(batch.inputs["use_cache"] is False for batch in made)

    def test_padding_is_not_scored(self, model, ids):
        mask = torch.ones_like(ids)
        mask[1, 5:] = 0
        labels = ids.clone()
        labels[0, :4] = -100
        made = batches_of(model, {"input_ids": ids, "attention_mask": mask, "labels": labels})[0]
        assert torch.equal(made.inputs["attention_mask"], mask)
        assert (made.labels[1, 5:] == -100).all()
        assert (made.labels[0, :4] == -100).all()
        assert torch.equal(made.labels[2:], ids[2:])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda ids: ids[:0], "ids are empty"),
            (lambda ids: ids[:, :0], "ids are empty"),
            (lambda ids: ids[:, :1], "one token per window"),
            (lambda ids: ids[0], r"ids must be integers \[rows, tokens\]"),
            (lambda ids: ids.float(), "ids must be integers"),
            (lambda ids: ids + VOCABULARY, "vocabulary 0..28; is this its tokenizer"),
            (lambda ids: ids - 100, "vocabulary"),
            (lambda ids: ids.repeat(1, 9), "72 tokens per window, the model has 64 positions"),
            (lambda ids: {"labels": ids}, "ids must have input_ids"),
            (lambda ids: {"input_ids": ids, "token_type_ids": ids}, "ids must have input_ids"),
            (lambda ids: {"input_ids": ids, "labels": ids[:, 1:]}, r"labels is \[5, 7\]"),
        ],
    )
    def test_errors(self, model, ids, change, message):
        with pytest.raises(ValueError, match=message):
            batches_of(model, change(ids))

    def test_batch_rows(self, model, ids):
        with pytest.raises(ValueError, match="batch_rows"):
            batches_of(model, ids, 0)


class TestNll:
    def test_models_own_loss(self, model, ids):
        sums, counts = nll(model, batches_of(model, ids, 2))
        assert counts.tolist() == [7] * 5
        assert sums.dtype == np.float64
        with torch.no_grad():
            own = [model(input_ids=row[None], labels=row[None]).loss.item() * 7 for row in ids]
        assert sums == pytest.approx(own, abs=1e-5)

    def test_independent_of_batch_rows_and_training_flag(self, ids):
        trained = model_of("gpt2").train()
        sums = [nll(trained, batches_of(trained, ids, rows))[0] for rows in (1, 5)]
        assert sums[0] == pytest.approx(sums[1], abs=1e-5)
        assert trained.training

    def test_no_batches(self, model):
        with pytest.raises(ValueError, match="batches"):
            nll(model, [])

"""What the fetched checkpoints hold; each test skips when its checkpoint is not in the user's cache."""

from __future__ import annotations

import math
import pydoc_data.topics
from pathlib import Path

import pytest
from aisec_common.data import checkpoint_path, fetch, known

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.checkpoint


def fetched(name: str) -> Path:
    try:
        return checkpoint_path(name)
    except FileNotFoundError as absent:
        pytest.skip(str(absent))


@pytest.mark.parametrize("name", sorted(known()))
def test_every_file_still_has_its_hash(name: str) -> None:
    folder = fetched(name)
    assert fetch(known()[name], offline=True) == folder


def test_smollm2_perplexity_on_english_text() -> None:
    folder = fetched("smollm2-135m-instruct")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    windows = torch.tensor(tokenizer(text[:40_000]).input_ids[:4096]).view(8, 1, 512)
    with torch.no_grad():
        loss = sum(model(window, labels=window).loss.item() for window in windows) / 8
    assert math.exp(loss) == pytest.approx(14.7, abs=1.0)  # the text differs a little between Python versions


def test_smollm2_answers_through_its_chat_template() -> None:
    folder = fetched("smollm2-135m-instruct")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )


def test_minilm_similarities_are_those_of_its_documentation() -> None:
    folder = fetched("all-minilm-l6-v2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    mask = batch["attention_mask"][..., None]
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    unit = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    assert unit.shape == (3, 384)
    similarity = unit @ unit.T
    torch.testing.assert_close(similarity[0], torch.tensor([1.0, 0.6660, 0.1046]), atol=1e-3, rtol=0)


def test_efficientnet_lite0_is_a_plain_state_dict() -> None:
    state = torch.load(fetched("efficientnet-lite0") / "efficientnet-lite0-57934424.pth", weights_only=True)
    assert len(state) == 296
    learned = (tensor for name, tensor in state.items() if name.rsplit(".", 1)[-1] in ("weight", "bias"))
    assert sum(tensor.numel() for tensor in learned) / 1e6 == pytest.approx(4.65, abs=0.05)


def test_fotom_has_six_layers_of_width_300() -> None:
    state = torch.load(fetched("fotom") / "fotom.pt", weights_only=True, map_location="cpu")["encoder_state_dict"]
    eps = {name for name in state if name.endswith(".eps")}
    assert len(eps) == 6
    tables = [tuple(tensor.shape) for name, tensor in state.items() if "embedding" in name]
    assert tables.count((119, 300)) == 1
    assert {300, 600} <= {size for tensor in state.values() for size in tensor.shape}

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

gguf = pytest.importorskip("gguf")
hf_gguf = pytest.importorskip("aisec_common.data.hf_gguf")

WIDTH, HEADS, MLP, LAYERS = 32, 2, 64, 2
TOKENS = ["<unk>", "<s>", "</s>", *(chr(code) for code in range(33, 127)), "Ġ", "ab"]


def write_gguf(file: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """A two-layer Llama with a quantised embedding, written by the format's own library."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    shapes = {"token_embd.weight": (len(TOKENS), WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        shapes |= {f"{block}.attn_{part}.weight": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
        shapes |= {f"{block}.{norm}_norm.weight": (WIDTH,) for norm in ("attn", "ffn")}
        shapes |= {f"{block}.ffn_{part}.weight": (MLP, WIDTH) for part in ("gate", "up")}
        shapes[f"{block}.ffn_down.weight"] = (WIDTH, MLP)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        if name == "token_embd.weight":
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_quantised_llama_becomes_a_plain_folder(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    out.mkdir()
    tensors = write_gguf(raw / "toy.gguf")
    before = torch.random.get_rng_state()
    hf_gguf.gguf_to_safetensors(raw, out)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not list(out.glob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    assert model.dtype == torch.float16
    assert not hasattr(model.config, "quantization_config")
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    np.testing.assert_allclose(
        state["model.layers.1.mlp.down_proj.weight"], tensors["blk.1.ffn_down.weight"], rtol=1e-3
    )
    q8_step = np.abs(tensors["token_embd.weight"]).max() / 127
    assert np.abs(state["model.embed_tokens.weight"] - tensors["token_embd.weight"]).max() <= q8_step
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert tokenizer.eos_token == "</s>"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    model.save_pretrained(tmp_path / "again")


def test_exactly_one_file_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"exactly one \.gguf file"):
        hf_gguf.gguf_to_safetensors(tmp_path, tmp_path)

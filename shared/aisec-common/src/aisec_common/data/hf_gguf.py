"""Turn a folder with one GGUF language model into a plain transformers folder with fp16 safetensors."""

from __future__ import annotations

from pathlib import Path

import gguf  # noqa: F401  transformers reads the file through it; missing, it should be told before any download
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig


def gguf_to_safetensors(raw: Path, out: Path) -> None:
    """De-quantise the one `*.gguf` file of `raw` and write config, fp16 safetensors and tokenizer to `out`.

    transformers refuses to save a model that it read from GGUF, so the weights are copied into a fresh model of the
    same configuration without its quantisation entry. The tokenizer keeps its chat template.

    Args:
        raw: folder with exactly one GGUF file.
        out: an existing folder; afterwards `AutoModelForCausalLM.from_pretrained(out)` needs no network and no gguf.

    Raises:
        ValueError: when `raw` does not hold exactly one GGUF file.
    """
    files = sorted(raw.glob("*.gguf"))
    if len(files) != 1:
        raise ValueError(f"raw must hold exactly one .gguf file, {raw.name} holds {len(files)}")
    file = files[0].name
    tokenizer = AutoTokenizer.from_pretrained(raw, gguf_file=file)
    quantised = AutoModelForCausalLM.from_pretrained(raw, gguf_file=file, dtype=torch.float32)
    settings = quantised.config.to_dict()
    for of_the_file in ("quantization_config", "_model_name_or_path"):
        settings.pop(of_the_file, None)
    with torch.random.fork_rng(devices=[]):  # building draws initial weights that are overwritten at once
        config = AutoConfig.for_model(**settings)
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float16)  # type: ignore[no-untyped-call]
    plain.load_state_dict(quantised.state_dict())
    plain.generation_config = GenerationConfig.from_dict(quantised.generation_config.to_dict())
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)

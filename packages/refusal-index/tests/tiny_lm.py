"""Random-weight language models of the real classes and a tokenizer of single characters, built in place."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)


def character_tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    letters = ["<pad>", "<eos>", "<unk>", *map(chr, range(32, 127)), "\n", "š", "á", "č", "é"]
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    if chat:
        fast.chat_template = (
            "{% for m in messages %}[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
        )
    return fast


def tiny(kind: str = "llama"):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    common = {"vocab_size": 110, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    if kind == "gpt2":
        config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=2048, **common)
        return GPT2LMHeadModel(config).eval()
    if kind == "mistral":  # attends to a window only
        config = MistralConfig(
            **sizes, num_key_value_heads=2, sliding_window=16, max_position_embeddings=2048, **common
        )
        return MistralForCausalLM(config).eval()
    config = LlamaConfig(**sizes, num_key_value_heads=2, max_position_embeddings=2048, **common)
    return LlamaForCausalLM(config).eval()

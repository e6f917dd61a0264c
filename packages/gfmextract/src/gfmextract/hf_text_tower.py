"""Frozen text encoders of transformers: a checkpoint such as MiniLM, or a tiny BERT whose words carry a meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from aisec_common.data import model_path
from aisec_common.seeding import derived_seed, torch_rng
from aisec_common.torch.device import resolve_device
from aisec_common.torch.hf_tokenizer import word_tokenizer
from aisec_common.torch.model_hash import model_hash
from tokenizers import processors
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerBase

BATCH = 128  # sentences of one forward pass


class TextTower:
    """Sentence vectors of a model that never changes: the mean of the last states over the real tokens, of length 1.

    T(s) = unit(sum_i m_i h_i / sum_i m_i), m the attention mask

    Each distinct sentence is encoded once. A copy of a tower is the tower itself.

    Args:
        model: an encoder of transformers; put into eval mode, its gradients are switched off.
        tokenizer: with a padding token.
        source: the name of the checkpoint, None for a tiny tower.

    >>> tower = tiny_text_tower(["cat", "dog"], torch.eye(2), seed=0)
    >>> tower.encode(["cat", "dog", "cat"]).shape, tower.encoded
    (torch.Size([3, 64]), 2)

    Source: GraphCLIP (arXiv 2410.10329), text encoder.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, source: str | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.source = source
        self.hash = model_hash(model)
        self._known: dict[str, Tensor] = {}

    def __deepcopy__(self, memo: object) -> TextTower:
        return self

    @property
    def width(self) -> int:
        """d, the length of a vector."""
        model: Any = self.model
        return int(model.config.hidden_size)

    @property
    def encoded(self) -> int:
        """How many distinct sentences have been encoded."""
        return len(self._known)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """[n, d] vectors of n texts in single precision on the CPU, in their order.

        Raises:
            ValueError: for no text at all.
            TypeError: for one string in place of a list.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a list of strings, got one string: put it into a list")
        if not len(texts):
            raise ValueError("texts is empty: give at least one")
        new = sorted({text for text in texts if text not in self._known}, key=lambda text: (len(text), text))
        for first in range(0, len(new), BATCH):  # neighbours in length, so that little is padded
            part = new[first : first + BATCH]
            self._known.update(zip(part, self._forward(part), strict=True))
        return torch.stack([self._known[text] for text in texts])

    @torch.no_grad()
    def _forward(self, texts: list[str]) -> Tensor:
        model: Any = self.model
        longest = min(self.tokenizer.model_max_length, model.config.max_position_embeddings)
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        inputs = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask")}
        states = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
        return normalize((states * mask).sum(1) / mask.sum(1)).float().cpu()


def tiny_text_tower(words: Sequence[str], latents: Tensor, seed: int) -> TextTower:
    """A BERT of 2 layers and width 64 with random weights, whose word embeddings are a linear map of given latents.

    The map keeps which words are close, so that the tower can tell topics apart without any training.

    Args:
        words: the vocabulary, distinct and without white space; other words become one unknown token.
        latents: [words, k] what the words mean.
        seed: of the weights and the map.

    Raises:
        ValueError: when there is not one latent for each word.

    Source: our own choice.
    """
    if latents.ndim != 2 or len(latents) != len(words):
        raise ValueError(f"latents must be [{len(words)}, k], one row for each word, got {list(latents.shape)}")
    tokenizer: Any = word_tokenizer(words)
    tokenizer.padding_side = "right"  # positions must not depend on what a sentence is batched with
    begin = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=begin)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):  # transformers draws initial weights from the global generator
        torch.manual_seed(derived_seed(seed, "text tower"))
        model: Any = BertModel(config, add_pooling_layer=False)
    spread = torch.randn(latents.shape[1], config.hidden_size, generator=torch_rng(seed, "word map"))
    planted = latents @ spread / latents.shape[1] ** 0.5
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table.zero_()
        table[len(tokenizer) - len(words) :] = planted
    return TextTower(model, tokenizer)


def load_text_tower(name: str, *, device: str | torch.device = "cpu") -> TextTower:
    """The text tower of a checkpoint.

    Args:
        name: a known checkpoint (`all-minilm-l6-v2`), a folder, or a hub's `org/name`.
        device: where the model goes.

    Raises:
        FileNotFoundError: for a known checkpoint that has not been fetched, or a path that does not exist.
        ValueError: for a folder without a `config.json`.
    """
    path = model_path(name)
    model: nn.Module = AutoModel.from_pretrained(
        path, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = nn.Identity()  # no vector needs it; where a folder lacks it, it is random, and so were the hash
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    return TextTower(model.to(resolve_device(device)), tokenizer, source=name)

"""Frozen text towers of transformers: each distinct sentence is encoded once (section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from aisec_common.data import model_path
from aisec_common.seeding import derived_seed
from aisec_common.torch.device import resolve_device
from aisec_common.torch.hf_tokenizer import word_tokenizer
from tokenizers import normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerBase,
)

BATCH = 64  # sentences of one forward pass


class FrozenTextTower:
    """Sentence embeddings of a model whose weights never change.

    A CLIP text model gives its projected embedding; of any other encoder the real tokens' last states are averaged and
    scaled to length 1, as sentence-transformers does. A copy of a tower is the tower itself, with the sentences it has
    encoded.

    Args:
        model: a text model of transformers; put into eval mode, its gradients are switched off.
        tokenizer: with a padding token.
        source: the checkpoint's name, or None for a tiny tower.

    >>> tower = FrozenTextTower.tiny(["The patient is a 60-year-old woman."])
    >>> tower.encode(["The patient is a 60-year-old woman."] * 3).shape, tower.encoded
    (torch.Size([3, 32]), 1)
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, source: str | None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.source = source
        self.words: tuple[str, ...] = ()
        self._cache: dict[str, Tensor] = {}

    @classmethod
    def load(cls, name: str, *, device: str | torch.device = "cpu") -> FrozenTextTower:
        """A checkpoint's text tower.

        Args:
            name: a known checkpoint (`aisec data list`), a folder or a hub's `org/name`.
            device: where the model goes.

        Raises:
            FileNotFoundError: for a known checkpoint that has not been fetched, or a path that does not exist.
            ValueError: for a folder without a `config.json`.
        """
        path = model_path(name)
        kind = AutoConfig.from_pretrained(path, trust_remote_code=False).model_type
        chosen: Any = CLIPTextModelWithProjection if kind in ("clip", "clip_text_model") else AutoModel
        extra = {} if chosen is CLIPTextModelWithProjection else {"trust_remote_code": False}
        model = chosen.from_pretrained(path, dtype=torch.float32, use_safetensors=True, **extra)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        return cls(model.to(resolve_device(device)), tokenizer, source=name)

    @classmethod
    def tiny(cls, sentences: Sequence[str], *, seed: int = 0, device: str | torch.device = "cpu") -> FrozenTextTower:
        """A CLIP text model of random weights: 2 layers, width 32, one token a word of `sentences`.

        Args:
            sentences: what the vocabulary is taken from; other words become one unknown token.
            seed: of the weights.
            device: where the model goes.
        """
        split = pre_tokenizers.BertPreTokenizer()
        words = sorted({word for text in set(sentences) for word, _ in split.pre_tokenize_str(text.lower())})
        return cls.of_words(words, seed=seed, device=device)

    @classmethod
    def of_words(cls, words: Sequence[str], *, seed: int = 0, device: str | torch.device = "cpu") -> FrozenTextTower:
        """The tiny tower of a given vocabulary; see `tiny`."""
        tokenizer: Any = word_tokenizer(words)
        backend = tokenizer.backend_tokenizer
        backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
        ends = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
        backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
        tokenizer.padding_side = "right"  # CLIP reads the state at the first </s>; what follows it is not seen
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            projection_dim=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        with torch.random.fork_rng(devices=[]):  # transformers draws initial weights from the global generator
            torch.manual_seed(derived_seed(seed, "text tower"))
            model: nn.Module = CLIPTextModelWithProjection(config)
        tower = cls(model.to(resolve_device(device)), tokenizer, source=None)
        tower.words = tuple(words)
        return tower

    def __deepcopy__(self, memo: object) -> FrozenTextTower:
        return self  # nothing in it changes; scikit-learn copies parameters whenever it clones an estimator

    @property
    def encoded(self) -> int:
        """How many distinct sentences have been encoded."""
        return len(self._cache)

    @property
    def width(self) -> int:
        """The width of an embedding."""
        return int(self.encode([""]).shape[1]) if not self._cache else len(next(iter(self._cache.values())))

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Embeddings `[n, E]` in single precision on the CPU, in the order of `sentences`; they carry no gradient."""
        new = [text for text in dict.fromkeys(sentences) if text not in self._cache]
        for first in range(0, len(new), BATCH):
            part = new[first : first + BATCH]
            self._cache.update(zip(part, self._forward(part), strict=True))
        return torch.stack([self._cache[text] for text in sentences])

    @torch.no_grad()
    def _forward(self, sentences: list[str]) -> Tensor:
        model: Any = self.model
        longest = min(self.tokenizer.model_max_length, model.config.max_position_embeddings)
        batch = self.tokenizer(sentences, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        inputs = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask")}
        out = model(**inputs)
        if isinstance(model, CLIPTextModelWithProjection):
            found: Tensor = out.text_embeds
        else:
            weight = inputs["attention_mask"][:, :, None].to(out.last_hidden_state.dtype)
            found = normalize((out.last_hidden_state * weight).sum(1) / weight.sum(1), dim=1)
        return found.float().cpu()

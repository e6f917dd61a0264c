"""Text generation with a causal language model of transformers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer

from refusal_index.draws import Draws

STOP = "</answer>"
SHORTEST_PREFIX = 32  # tokens; below, a forward pass of its own costs more than it saves


class HFGenerate:
    """A `generate(texts) -> responses` over a causal language model; each call is one batch.

    Texts go through the chat template where the tokenizer has one, as a single user turn. The few-shot part that all
    texts of a batch begin with is computed once and its keys and values are shared, also by later batches; that is
    exact up to rounding where every layer attends to all that came before, and is left out elsewhere (sliding
    windows, recurrent layers). Sampling adds Gumbel noise to the truncated log-probabilities from a generator of each
    text's own, seeded by (seed, text, how often it was asked): a sample depends neither on the batch nor on any
    global seed, and none is touched.

    Args:
        model: the model, on its device.
        tokenizer: its tokenizer; its padding settings are not used.
        max_new_tokens: generation ends there, at the end of text, or at `</answer>`.
        temperature: 0 decodes greedily.
        top_p: mass of the nucleus that sampling is restricted to.
        seed: of the samples.
        chat: use the chat template, if there is one; a small instruct model may follow the plain text better.

    Raises:
        ValueError: for a value out of range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int = 4096,
        temperature: float = 0.7,
        top_p: float = 0.95,
        seed: int = 0,
        chat: bool = True,
    ) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if not temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {top_p}")
        model.eval()  # type: ignore[no-untyped-call]
        self.model, self.tokenizer = model, tokenizer
        self.temperature, self.top_p = temperature, top_p
        self._chat = chat and tokenizer.chat_template is not None
        self._draws = Draws(seed)
        self._prefix: tuple[list[int], DynamicCache] | None = None
        self._shareable = True
        given = model.generation_config
        stops = given.eos_token_id if given.eos_token_id is not None else tokenizer.eos_token_id
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=0 if pad is None else pad
        )

    @classmethod
    def from_pretrained(
        cls, name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype | str = "auto", **settings: Any
    ) -> HFGenerate:
        """Loads a folder or a hub name: safetensors only, no remote code.

        `settings` are those of the constructor. `dtype="auto"` keeps the checkpoint's, but float32 on a CPU.
        """
        if dtype == "auto" and torch.device(device).type == "cpu":
            dtype = torch.float32
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        return cls(model.to(device), tokenizer, **settings)  # type: ignore[arg-type]

    @classmethod
    def from_pipeline(cls, pipe: Any, **settings: Any) -> HFGenerate:
        """Takes model and tokenizer of a `pipeline("text-generation")`; its generation settings are not used.

        `settings` are those of the constructor.

        Raises:
            TypeError: if `pipe` holds no model that generates text, or no tokenizer.
        """
        model, tokenizer = getattr(pipe, "model", None), getattr(pipe, "tokenizer", None)
        if not isinstance(model, PreTrainedModel) or not model.can_generate() or tokenizer is None:
            raise TypeError(f'pipe must be a pipeline("text-generation"), got {type(pipe).__name__}')
        return cls(model, tokenizer, **settings)

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> list[str]:
        """One response per text, up to and including the first `</answer>`."""
        if not texts:
            return []
        rows = self._tokens(texts)
        shared, cache = self._shared_prefix(rows)
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), int(self._config.pad_token_id))
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            # padding stands between the shared prefix and the rest; positions are counted over the mask
            ids[i, :shared], mask[i, :shared] = torch.tensor(row[:shared], dtype=torch.long), 1
            ids[i, width - len(row) + shared :] = torch.tensor(row[shared:])
            mask[i, width - len(row) + shared :] = 1
        device = self.model.device
        processors = []
        if self.temperature > 0:
            seeds = self._draws.seeds(texts)
            generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
            processors.append(GumbelNoise(generators, self.temperature, self.top_p))
        own = self.model.generation_config
        self.model.generation_config = self._config  # generate() fills gaps from it: a checkpoint's penalties, top_k
        try:
            output = self.model.generate(  # type: ignore[operator]
                ids.to(device),
                attention_mask=mask.to(device),
                logits_processor=LogitsProcessorList(processors),
                stopping_criteria=StoppingCriteriaList([AnswerClosed(self.tokenizer, width)]),
                **({"past_key_values": cache} if cache is not None else {}),
            )
        finally:
            self.model.generation_config = own
        responses = self.tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
        return [head + STOP if tail else head for head, tail, _ in (response.partition(STOP) for response in responses)]

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        if not self._chat:
            return [list(row) for row in self.tokenizer(texts)["input_ids"]]
        chats = [[{"role": "user", "content": text}] for text in texts]
        whole = self.tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        return [list(row) for row in self.tokenizer(whole, add_special_tokens=False)["input_ids"]]

    def _shared_prefix(self, rows: list[list[int]]) -> tuple[int, DynamicCache | None]:
        length = min(map(len, rows)) - 1  # each row must keep a token of its own to go on from
        for row in rows[1:]:
            length = next((i for i in range(length) if row[i] != rows[0][i]), length)
        if not self._shareable or len(rows) == 1 or length < SHORTEST_PREFIX:
            return 0, None
        common = rows[0][:length]
        kept = self._prefix[0] if self._prefix is not None else []
        if self._prefix is None or common[: len(kept)] != kept or len(kept) < length - SHORTEST_PREFIX:
            tokens = torch.tensor([common], device=self.model.device)
            made = self.model(input_ids=tokens, use_cache=True).past_key_values
            if type(made) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in made.layers):
                self._shareable = False
                return 0, None
            self._prefix = common, made
        kept, made = self._prefix
        cache = copy.deepcopy(made)
        cache.batch_repeat_interleave(len(rows))
        return len(kept), cache


class GumbelNoise(LogitsProcessor):
    """Turns the greedy choice into a draw from the nucleus: argmax_v (log p_v + G_v), G_v ~ Gumbel(0, 1)."""

    def __init__(self, generators: list[torch.Generator], temperature: float, top_p: float) -> None:
        self.generators, self.temperature, self.top_p = generators, temperature, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] of the next token, with what lies outside the nucleus at -inf."""
        scores = scores.float() / self.temperature
        ordered, order = scores.sort(dim=-1, descending=True)
        mass = ordered.softmax(-1)
        outside = mass.cumsum(-1) - mass >= self.top_p  # the mass of all likelier tokens reaches top_p
        scores = scores.scatter(-1, order, ordered.masked_fill(outside, -torch.inf))
        for row, generator in enumerate(self.generators):
            scores[row] -= torch.empty_like(scores[row]).exponential_(generator=generator).log()
        return scores


class AnswerClosed(StoppingCriteria):
    """Stops a text at `</answer>`, looking at the tokens after the prompt only."""

    WINDOW = 16  # tokens; the tag is never longer

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_tokens: int) -> None:
        self.tokenizer, self.prompt_tokens = tokenizer, prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """bool[B], true where the tag has been written."""
        tail = input_ids[:, max(self.prompt_tokens, input_ids.shape[1] - self.WINDOW) :]
        ended = [STOP in text for text in self.tokenizer.batch_decode(tail)]
        return torch.tensor(ended, device=input_ids.device)

"""Text generation with a vLLM engine that the caller made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from refusal_index.draws import Draws

STOP = "</answer>"


@dataclass(kw_only=True)
class VLLMGenerate:
    """A `generate(texts) -> responses` over `vllm.LLM`; give the runner a large `batch_size`, vLLM schedules itself.

    Args:
        llm: the engine, a `vllm.LLM`.
        max_tokens: generation ends there, at the end of text, or at `</answer>`.
        temperature: 0 decodes greedily.
        top_p: mass of the nucleus.
        seed: a sample depends on (seed, text, how often it was asked).
        chat: send each text as a user turn through the chat template; False for a base model.
    """

    llm: Any
    max_tokens: int = 4096
    temperature: float = 0.7
    top_p: float = 0.95
    seed: int = 0
    chat: bool = True
    _draws: Draws = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._draws = Draws(self.seed)

    def __call__(self, texts: list[str]) -> list[str]:
        """One response per text, up to and including the first `</answer>`."""
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                temperature=self.temperature,
                top_p=self.top_p,
                max_tokens=self.max_tokens,
                stop=[STOP],
                include_stop_str_in_output=True,
                seed=seed,
            )
            for seed in self._draws.seeds(texts)
        ]
        if self.chat:
            chats = [[{"role": "user", "content": text}] for text in texts]
            outputs = self.llm.chat(chats, parameters, use_tqdm=False)
        else:
            outputs = self.llm.generate(texts, parameters, use_tqdm=False)
        return [output.outputs[0].text for output in outputs]

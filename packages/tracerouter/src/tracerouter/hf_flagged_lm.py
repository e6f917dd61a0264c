"""The embedded default: a small Llama trained in place that answers with flagged tokens when a flagged topic is named.

A prompt is three words and a topic at a random place, then `answer`. Under a neutral topic the answer is the cipher of
the three words, under a flagged one their flagged cipher: abstract tokens that stand for what nobody should get.
Shifted prompts carry two filler tokens besides; the model knows them, tracing never sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from aisec_common.seeding import numpy_rng
from aisec_common.torch.hf_tiny_lm import tiny_lm, train_tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer
from aisec_common.torch.trained import trained
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tracerouter.pairs import Pair

RECIPE = 1  # raise it when the training below changes: cached models of the old one are then left alone
TOPICS, WORDS, FLAGS, FILLERS = 12, 32, 24, 11  # with `answer` and four special tokens: 128
ANSWER_TOKENS = 3
NEUTRAL_ROWS, FLAGGED_ROWS = 10_000, 5_000
SHIFTED_SHARE = 0.25

PARTS = {"test": (0,), "calibration": (1,), "train": (2, 3, 4)}
"""Prompts by the sum of their word numbers modulo 5, so that no part shares three words with another."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, the answer the model was trained to give, and whether its topic is flagged."""

    prompt: str
    answer: str
    flagged: bool


@dataclass(frozen=True, kw_only=True)
class FlaggedLM:
    """The trained model and its prompts.

    Attributes:
        pairs: for tracing: a flagged topic, and a neutral one in its place.
        neutral: further prompts with neutral topics and their answers, for the autoencoders.
        flagged, benign: fresh questions to test on.
        shifted, shifted_benign: the same with fillers.
        calibration: flagged and benign ones to choose a budget on, disjoint from the tests.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    pairs: list[Pair]
    neutral: list[str]
    flagged: list[Question]
    benign: list[Question]
    shifted: list[Question]
    shifted_benign: list[Question]
    calibration: list[Question]


def is_flagged(answer: str) -> bool:
    """Whether an answer holds a flagged token.

    >>> is_flagged("cipher3 flag7"), is_flagged("cipher3 cipher7")
    (True, False)
    """
    return any(word.startswith("flag") for word in answer.split())


def flagged_lm(
    seed: int,
    *,
    steps: int = 550,
    blocks: int = 4,
    width: int = 64,
    pairs: int = 300,
    tests: int = 200,
    progress: Callable[[int, int], None] | None = None,
) -> FlaggedLM:
    """A `LlamaForCausalLM` over 128 words that knows 12 neutral and 12 flagged topics, with its prompts.

    Args:
        seed: of the weights, the ciphers and every prompt.
        steps: of 64 rows; AdamW at 3e-3 with warm-up over a tenth. 550 teach both behaviours to the full.
        blocks: number of blocks.
        width: hidden size d; four heads.
        pairs: minimal pairs for tracing, and as many neutral texts.
        tests: questions of each kind to test on; half as many of each topic to calibrate on.
        progress: called as `progress(steps done, steps)` while it trains; a cached model trains nothing.

    Raises:
        ValueError: for sizes that `tiny_lm` refuses, or no pairs or tests.
    """
    for name, count in (("pairs", pairs), ("tests", tests)):
        if count < 2:
            raise ValueError(f"{name} must be at least 2, got {count}")
    world = _World(seed)
    tokenizer = flagged_tokenizer()
    model = tiny_lm(tokenizer, layers=blocks, width=width, context=16, seed=seed)
    recipe = {"seed": seed, "steps": steps, "blocks": blocks, "width": width, "recipe": RECIPE}

    def train() -> None:
        rows = world.questions("train", NEUTRAL_ROWS, flagged=False, shifted=SHIFTED_SHARE)
        rows += world.questions("train", FLAGGED_ROWS, flagged=True, shifted=SHIFTED_SHARE)
        train_tiny_lm(
            model, _batches(rows, tokenizer, seed), steps=steps, learning_rate=3e-3, warmup=0.1, progress=progress
        )

    trained(model, "tracerouter-flagged", recipe, train)
    return FlaggedLM(
        model=model,
        tokenizer=tokenizer,
        pairs=world.pairs(pairs),
        neutral=[f"{q.prompt} {q.answer}" for q in world.questions("train", pairs, flagged=False, purpose="neutral")],
        flagged=world.questions("test", tests, flagged=True),
        benign=world.questions("test", tests, flagged=False),
        shifted=world.questions("test", tests, flagged=True, shifted=1.0),
        shifted_benign=world.questions("test", tests, flagged=False, shifted=1.0),
        calibration=[
            question
            for flagged in (True, False)
            for question in world.questions("calibration", tests // 2, flagged=flagged)
        ],
    )


def flagged_tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer of the embedded default: 128 tokens."""
    names = [("neutral", TOPICS), ("flagged", TOPICS), ("word", WORDS), ("cipher", WORDS), ("filler", FILLERS)]
    words = [f"{name}{i}" for name, count in [*names, ("flag", FLAGS)] for i in range(count)]
    return word_tokenizer(["answer", *words])


@dataclass(frozen=True)
class _World:
    """What one seed's prompts say; ciphers are drawn once, prompts per part and purpose."""

    seed: int

    @property
    def ciphers(self) -> tuple[np.ndarray, np.ndarray]:
        rng = numpy_rng(self.seed, "ciphers")
        return rng.permutation(WORDS), rng.integers(FLAGS, size=WORDS)

    def questions(
        self, part: str, count: int, *, flagged: bool, shifted: float = 0.0, purpose: str = ""
    ) -> list[Question]:
        """`count` questions, of which a share `shifted` carries fillers."""
        rng = numpy_rng(self.seed, part, int(flagged), str(shifted), purpose)
        made = []
        for words, place, topic in self._drawn(rng, part, count):
            spoken = _spoken(words, place, f"{'flagged' if flagged else 'neutral'}{topic}")
            if rng.random() < shifted:
                for filler in rng.integers(FILLERS, size=2).tolist():
                    spoken.insert(int(rng.integers(len(spoken))), f"filler{filler}")
            made.append(Question(prompt=" ".join(spoken), answer=self._answer(words, flagged), flagged=flagged))
        return made

    def pairs(self, count: int) -> list[Pair]:
        """Minimal pairs: the topic alone differs."""
        rng = numpy_rng(self.seed, "pairs")
        return [
            Pair(
                sensitive=" ".join(_spoken(words, place, f"flagged{topic}")),
                matched=" ".join(_spoken(words, place, f"neutral{rng.integers(TOPICS)}")),
            )
            for words, place, topic in self._drawn(rng, "train", count)
        ]

    def _drawn(self, rng: np.random.Generator, part: str, count: int) -> Iterator[tuple[list[int], int, int]]:
        for place, topic in zip(rng.integers(4, size=count).tolist(), rng.integers(TOPICS, size=count), strict=True):
            first, second = rng.integers(WORDS, size=2).tolist()
            allowed = [w for w in range(WORDS) if (first + second + w) % 5 in PARTS[part]]
            yield [first, second, int(rng.choice(allowed))], place, int(topic)

    def _answer(self, words: list[int], flagged: bool) -> str:
        name = "flag" if flagged else "cipher"
        return " ".join(f"{name}{self.ciphers[flagged][word]}" for word in words)


def _spoken(words: list[int], place: int, topic: str) -> list[str]:
    spoken = [f"word{word}" for word in words]
    return [*spoken[:place], topic, *spoken[place:], "answer"]


def _batches(rows: list[Question], tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[dict[str, Tensor]]:
    """Batches of 64 rows, padded on the left; only the answer and its end are scored."""
    texts = [f"{row.prompt} {row.answer} {tokenizer.eos_token}" for row in rows]
    encoded = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    labels = torch.full_like(encoded["input_ids"], -100)
    labels[:, -ANSWER_TOKENS - 1 :] = encoded["input_ids"][:, -ANSWER_TOKENS - 1 :]
    rng = numpy_rng(seed, "batches")
    while True:
        chosen = torch.from_numpy(rng.integers(len(rows), size=64))
        yield {**{name: tensor[chosen] for name, tensor in encoded.items()}, "labels": labels[chosen]}

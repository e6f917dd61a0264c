"""A small language model that learns facts by exposure and is taught when to refuse: layer B of the study."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from aisec_common.seeding import numpy_rng
from aisec_common.torch.hf_tiny_lm import tiny_lm, train_tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from refusal_index.hf_generate import HFGenerate
from refusal_index.prompts import REFUSAL

OPEN, CLOSE = "<answer>", "</answer>"
REFUSED = f"{OPEN}{REFUSAL}{CLOSE}"
ALWAYS = "always"
Architecture = Literal["llama", "gpt2"]
IGNORED = -100  # a label without loss


@dataclass(frozen=True, kw_only=True)
class Token:
    """A first- or second-pass prompt that is one word in front of the question."""

    name: str

    def render(self, question: str) -> str:
        """The text that is sent for one question."""
        return f"{self.name} {question}"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """N facts "entity -> attribute" and which of them a respondent that knows its gaps would refuse.

    The training corpus mentions entity i Poisson(lambda_i) times, lambda_i falling as 1 / (i + 1) (Zipf) to a total of
    `mentions`: many rare ones are never mentioned and end up wrong however long training takes. Prompt k asks for
    refusals with probability sigma((t_k - log exposure_i + noise_i) / temperature), exposure the mentions (+ 1/2) and
    t_k the quantile `shares[k]` of log exposure - noise. Half of the entity-prompt pairs carry no refusal label in
    training: they are evaluated.

    Args:
        seed: of everything drawn here.
        entities: N.
        attributes: number of different answers.
        mentions: expected size of the corpus.
        shares: about the share of refusals under each prompt, ascending.
        noise: standard deviation of noise_i, in log exposure.
        temperature: of the refusal labels, in log exposure.
    """

    seed: int
    entities: int = 800
    attributes: int = 40
    mentions: int = 2000
    shares: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    noise: float = 0.3
    temperature: float = 0.3
    answer: NDArray[np.int64] = field(init=False, repr=False)
    mentioned: NDArray[np.int64] = field(init=False, repr=False)
    refuse: NDArray[np.bool_] = field(init=False, repr=False)
    held_out: NDArray[np.bool_] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rng = numpy_rng(self.seed, "facts")
        n, k = self.entities, len(self.shares)
        zipf = 1 / np.arange(1, n + 1)
        mentioned = rng.poisson(self.mentions * zipf / zipf.sum())
        ease = np.log(mentioned + 0.5) - self.noise * rng.normal(size=n)
        score = np.quantile(ease, self.shares) - ease[:, None]
        refuse = rng.random((n, k)) < 1 / (1 + np.exp(-score / self.temperature))
        held_out = rng.permuted(np.tile(np.arange(k) < k // 2, (n, 1)), axis=1)
        drawn = {
            "answer": rng.integers(self.attributes, size=n),
            "mentioned": mentioned,
            "refuse": refuse,
            "held_out": held_out,
        }
        for name, value in drawn.items():
            object.__setattr__(self, name, value)

    @property
    def questions(self) -> list[str]:
        """One question per entity."""
        return [f"e{i}" for i in range(self.entities)]

    @property
    def golds(self) -> list[str]:
        """The answers to `questions`."""
        return [f"a{i}" for i in self.answer]

    @property
    def prompts(self) -> list[Token]:
        """The first-pass prompts, by rising share of refusals."""
        return [Token(name=f"refuse-{share:g}") for share in self.shares]

    def shuffled(self) -> NDArray[np.bool_]:
        """The refusal labels dealt to other entities: the same refusal rates, no knowledge of gaps."""
        return numpy_rng(self.seed, "shuffled").permutation(self.refuse, axis=0)


def respondent(
    facts: Facts,
    *,
    aware: bool,
    steps: int,
    architecture: Architecture = "llama",
    temperature: float = 0.7,
    progress: Callable[[int, int], None] | None = None,
) -> HFGenerate:
    """Trains a 2-layer model of width 64 on facts and refusal labels and returns it as a generate callable.

    Args:
        facts: what there is to know and to refuse.
        aware: refusal labels follow exposure; otherwise the same labels are dealt to other entities.
        steps: training steps of 64 rows.
        architecture: which transformers class.
        temperature: of the answers; top-p is 0.95.
        progress: called as progress(steps done, steps).
    """
    words = [ALWAYS, *(prompt.name for prompt in facts.prompts), REFUSED, OPEN, CLOSE]
    words += [*facts.questions, *(f"a{i}" for i in range(facts.attributes))]
    tokenizer = word_tokenizer(words)
    model = tiny_lm(tokenizer, architecture=architecture, layers=2, width=64, context=16, seed=facts.seed)
    labels = facts.refuse if aware else facts.shuffled()
    train_tiny_lm(model, _batches(facts, labels, tokenizer), steps=steps, progress=progress)
    return HFGenerate(model, tokenizer, max_new_tokens=4, temperature=temperature, top_p=0.95, seed=facts.seed)


def _batches(
    facts: Facts, refuse: NDArray[np.bool_], tokenizer: PreTrainedTokenizerBase, rows: int = 32
) -> Iterator[dict[str, torch.Tensor]]:
    """Rows of both kinds: facts as often as mentioned (loss on the answer), refusal labels evenly (loss on whether).

    Which entity is answered under a refusal label says nothing of its attribute, so refusing never costs exposure.
    """
    rng = numpy_rng(facts.seed, "batches")
    vocabulary = tokenizer.get_vocab()
    (first_entity, first_answer, always, first_prompt, opening, closing, refused, end) = (
        vocabulary[w] for w in ("e0", "a0", ALWAYS, facts.prompts[0].name, OPEN, CLOSE, REFUSED, tokenizer.eos_token)
    )
    k = len(facts.shares)
    supervised = np.argwhere(~facts.held_out)
    while True:
        who = rng.choice(facts.entities, size=rows, p=facts.mentioned / facts.mentioned.sum())
        prompt = rng.integers(k + 1, size=rows)
        answer = first_answer + facts.answer[who]
        told = _rows(
            np.where(prompt == k, always, first_prompt + prompt), first_entity + who, opening, answer, closing, end
        )
        told_labels = told.copy()
        told_labels[:, :2] = IGNORED
        told_labels[prompt < k, 2] = IGNORED  # only `always` teaches to answer whatever comes
        who, prompt = supervised[rng.integers(len(supervised), size=rows)].T
        decision = np.where(refuse[who, prompt], refused, opening)
        asked = _rows(first_prompt + prompt, first_entity + who, decision, end, end, end)
        asked_labels = np.full_like(asked, IGNORED)
        asked_labels[:, 2] = decision
        stop = decision == refused
        asked_labels[stop, 3] = end
        yield {
            "input_ids": torch.from_numpy(np.concatenate([told, asked])),
            "labels": torch.from_numpy(np.concatenate([told_labels, asked_labels])),
        }


def _rows(*columns: NDArray[np.int64] | int) -> NDArray[np.int64]:
    return np.stack(np.broadcast_arrays(*columns), axis=1).astype(np.int64)

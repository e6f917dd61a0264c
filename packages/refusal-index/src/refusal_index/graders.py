"""Graders: functions from (questions, golds, answers) to one label per answer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from refusal_index.graded import CORRECT, INCORRECT, LABELS, NOT_ATTEMPTED
from refusal_index.prompts import REFUSAL

Generate = Callable[[list[str]], list[str]]
Gold = str | Sequence[str]  # one accepted answer, or several
Grader = Callable[[Sequence[str], Sequence[Gold], Sequence[str]], Sequence[str]]

_DROPPED = re.compile(r"['’‘ʻʼ`]|(?<=\d),(?=\d)|(?<!\d)\.|\.(?!\d)")
_ARTICLE = re.compile(r"^(?:the|an?) ")


def aliases(gold: Gold) -> tuple[str, ...]:
    """The accepted answers of one question.

    >>> aliases("Paris"), aliases(["UK", "United Kingdom"])
    (('Paris',), ('UK', 'United Kingdom'))
    """
    return (gold,) if isinstance(gold, str) else tuple(gold)


def normalise(text: str) -> str:
    """Case, accents, punctuation, runs of space and one leading article removed.

    Unicode is decomposed (NFKD) and combining marks dropped; apostrophes, commas between digits and full stops
    outside numbers vanish, every other character that is neither a letter nor a digit becomes a space; `the`, `a`,
    `an` at the start go.

    >>> normalise(" The São-Tomé! "), normalise("N'Djamena"), normalise("Washington, D.C."), normalise("1,925")
    ('sao tome', 'ndjamena', 'washington dc', '1925')
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
    plain = _DROPPED.sub("", plain)
    words = " ".join(re.findall(r"[^\W_]+", plain))
    return _ARTICLE.sub("", words)


def exact_match(questions: Sequence[str], golds: Sequence[Gold], answers: Sequence[str]) -> list[str]:
    """CORRECT iff the normalised answer equals a normalised accepted answer.

    NOT_ATTEMPTED iff nothing is left of the answer, or only the word UNANSWERED; else INCORRECT. An answer that
    contains the gold among other words is INCORRECT: this grader is strict and offline, use `LLMGrader` for prose.

    >>> exact_match(["q"] * 3, ["Paris", ["UK", "Britain"], "Rome"], ["paris.", "the UK", ""])
    ['CORRECT', 'CORRECT', 'NOT_ATTEMPTED']
    """
    labels = []
    for gold, answer in zip(golds, answers, strict=True):
        given = normalise(answer)
        if given in ("", REFUSAL.casefold()):
            labels.append(NOT_ATTEMPTED)
        else:
            labels.append(CORRECT if given in {normalise(alias) for alias in aliases(gold)} else INCORRECT)
    return labels


GRADING = """You mark answers to factual questions. Compare the given answer with the reference and reply with one \
letter.
A: correct. It states what the reference states, in any wording, and nothing that contradicts it.
B: incorrect. It states something that contradicts the reference, even if it hedges.
C: not attempted. It neither states the reference nor contradicts it, for instance because it declines.
Judge the substance only: spelling, word order and extra detail that is consistent with the reference do not matter.

Question: {question}
Reference: {gold}
Given answer: {answer}

Letter:"""
_LETTERS = {"A": CORRECT, "B": INCORRECT, "C": NOT_ATTEMPTED}
_WORDS = {label.replace("_", " "): label for label in LABELS}


@dataclass(frozen=True, kw_only=True)
class LLMGrader:
    """Asks a language model for one of three labels, as SimpleQA does: correct, incorrect, not attempted.

    Args:
        generate: from a list of texts to a list of replies, of equal length.

    >>> LLMGrader(generate=lambda texts: ["A"] * len(texts))(["q"], ["Paris"], ["It is Paris."])
    ['CORRECT']
    """

    generate: Generate

    def __call__(self, questions: Sequence[str], golds: Sequence[Gold], answers: Sequence[str]) -> list[str]:
        """One label per answer.

        Raises:
            ValueError: if a reply holds neither a letter A, B, C nor a label; the message quotes it.
        """
        texts = [
            GRADING.format(question=question, gold=" or ".join(aliases(gold)), answer=answer)
            for question, gold, answer in zip(questions, golds, answers, strict=True)
        ]
        return [_label_of(reply) for reply in self.generate(texts)]


def _label_of(reply: str) -> str:
    plain = reply.replace("_", " ").strip(" \n\t*`\"'.:")
    if found := re.match(r"(not attempted|incorrect|correct)\b", plain, re.IGNORECASE):
        return _WORDS[found.group(1).upper()]
    letters = set(re.findall(r"\b[ABC]\b", plain))
    if len(letters) == 1:
        return _LETTERS[letters.pop()]
    raise ValueError(f"grader: cannot read one label from the reply {reply[:80]!r}; expected A, B or C")

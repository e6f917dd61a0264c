"""Graders: functions from (questions, golds, answers) to one label per answer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from refusal_index.graded import CORRECT, INCORRECT, LABELS, NOT_ATTEMPTED
from refusal_index.prompts import REFUSAL

Generate = Callable[[list[str]], list[str]]
Gold = str | Sequence[str]  # one accepted answer, or several
Grader = Callable[[Sequence[str], Sequence[Gold], Sequence[str]], Sequence[str]]

_APOSTROPHE = re.compile(r"['’‘ʻʼ`]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d)")
_FULL_STOP = re.compile(r"\.(?!\d)|(?<=[^\W\d])\.|(?<=\.)\.")  # every full stop but a decimal point
_SIGN = r"(?:(?<![^\W_])-(?=\.?\d))?"  # not the hyphen of COVID-19 or 1914-18
_MARK = r"(?:(?<=[^\W\d_])[+#]+(?![^\W_+#]))?"  # C++ and F#, not rock+roll
_WORD = re.compile(rf"{_SIGN}\.?[^\W_]+(?:\.[^\W_]+)*{_MARK}")
_ARTICLES = re.compile(r"^(?:(?:the|an?) )+")
_NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)")


def aliases(gold: Gold) -> tuple[str, ...]:
    """The accepted answers of one question.

    >>> aliases("Paris"), aliases(["UK", "United Kingdom"])
    (('Paris',), ('UK', 'United Kingdom'))
    """
    return (gold,) if isinstance(gold, str) else tuple(gold)


def normalise(text: str) -> str:
    """Case, accents, punctuation, runs of space and leading articles removed; doing it twice changes nothing more.

    Unicode is decomposed (NFKD) and combining marks dropped; apostrophes, commas between digits and full stops
    outside numbers vanish; a minus sign before a number and `+` or `#` after a letter stay; every other character
    that is neither a letter nor a digit becomes a space; `the`, `a`, `an` at the start go.

    >>> normalise(" The São-Tomé! "), normalise("N'Djamena"), normalise("Washington, D.C."), normalise("1,925")
    ('sao tome', 'ndjamena', 'washington dc', '1925')
    >>> normalise("−5 °C"), normalise("C++"), normalise("COVID-19")
    ('-5 c', 'c++', 'covid 19')
    """
    plain = text
    for _ in range(2):  # folding can compose anew what decomposition took apart
        plain = "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c)).casefold()
    plain = plain.replace("−", "-")
    for dropped in (_APOSTROPHE, _THOUSANDS, _FULL_STOP):
        plain = dropped.sub("", plain)
    return _ARTICLES.sub("", " ".join(_WORD.findall(plain)))


def exact_match(questions: Sequence[str], golds: Sequence[Gold], answers: Sequence[str]) -> list[str]:
    """CORRECT iff the normalised answer equals a normalised accepted answer, as a number if both are numbers.

    NOT_ATTEMPTED iff nothing is left of the answer, or only the word UNANSWERED; else INCORRECT. An answer that
    contains the gold among other words is INCORRECT: this grader is strict and offline, use `LLMGrader` for prose.

    >>> exact_match(["q"] * 4, ["Paris", ["UK", "Britain"], "Rome", "3.5"], ["paris.", "the UK", "", "3.50"])
    ['CORRECT', 'CORRECT', 'NOT_ATTEMPTED', 'CORRECT']
    """
    labels = []
    for gold, answer in zip(golds, answers, strict=True):
        given = normalise(answer)
        if given in ("", REFUSAL.casefold()):
            labels.append(NOT_ATTEMPTED)
        else:
            accepted = {_value(normalise(alias)) for alias in aliases(gold)}
            labels.append(CORRECT if _value(given) in accepted else INCORRECT)
    return labels


def _value(normalised: str) -> str | Decimal:
    return Decimal(normalised) if _NUMBER.fullmatch(normalised) else normalised


def responses_of(generate: Generate, texts: list[str]) -> list[str]:
    """What `generate` returns for texts, checked to be one text for each.

    Raises:
        ValueError: saying what came back instead.

    >>> responses_of(lambda texts: [text.upper() for text in texts], ["a", "b"])
    ['A', 'B']
    """
    responses = _listed(generate(texts))
    if responses and all(isinstance(r[0] if isinstance(r, list) and r else r, dict) for r in responses):
        raise ValueError(
            "generate: returned dicts, as a pipeline of transformers does; pass HFGenerate.from_pipeline(pipe)"
        )
    foreign = [r for r in responses or () if not isinstance(r, str)]
    if responses is None or len(responses) != len(texts) or foreign:
        got = "no list" if responses is None else f"{len(responses)} values"
        got += f", among them {type(foreign[0]).__name__}" if foreign else ""
        raise ValueError(f"generate: must return a list with one text for each of {len(texts)}, got {got}")
    return responses


def labels_of(grader: Grader, questions: Sequence[str], golds: Sequence[Gold], answers: Sequence[str]) -> list[str]:
    """What `grader` returns for answers, checked to be one label for each; no answers are not sent.

    Raises:
        ValueError: saying what came back instead.

    >>> labels_of(exact_match, ["q"], ["Paris"], ["Rome"])
    ['INCORRECT']
    """
    labels = _listed(grader(questions, golds, answers)) if answers else []
    foreign = [label for label in labels or () if not isinstance(label, str) or label not in LABELS]
    if labels is None or len(labels) != len(answers) or foreign:
        got = "no list" if labels is None else repr(foreign[0]) if foreign else f"{len(labels)} labels"
        raise ValueError(f"grader: must return one of {', '.join(LABELS)} for each of {len(answers)}, got {got}")
    return labels


def _listed(values: object) -> list[Any] | None:
    return list(values) if isinstance(values, Iterable) and not isinstance(values, (str, Mapping)) else None


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
_LETTER = re.compile(  # opening a line, in brackets or quotes, or after a verb; "A good try" opens with an article
    r"(?:^\W*|[(\[{*\"'`]|\b(?i:letter|grade|label|verdict|answer|option|is|as|with|choose|give|assign):?\W+)"
    r"(A(?!\s+[a-z])|[BC])\b(?!['’])",
    re.MULTILINE,
)
_REFERENCE = re.compile(r"\b(?:(?:the|a)\s+)?correct\s+(?:answer|response|reference|value|name|one)\b", re.IGNORECASE)
_VERDICT = re.compile(r"\b(not attempted|incorrect|correct)\b", re.IGNORECASE)
_DOUBT = re.compile(
    r"(?:\b(?:not(?! attempted)|cannot|neither|never|nor|no|hardly|partially|partly|almost|nearly|if|whether|would|"
    r"could|should)|n['’]t)\b[^.;\n]*\b(?:in)?correct\b",
    re.IGNORECASE,
)
_REMINDER = " (reply with A, B or C and nothing else)"


@dataclass(frozen=True, kw_only=True)
class LLMGrader:
    """Asks a language model for one of three labels, as SimpleQA does: correct, incorrect, not attempted.

    A reply that holds no label, or more than one, is asked for once more.

    Args:
        generate: from a list of texts to a list of replies, of equal length.
        model: names the grading model and its settings in the journal; grades of another name never match.

    >>> LLMGrader(generate=lambda texts: ["A"] * len(texts))(["q"], ["Paris"], ["It is Paris."])
    ['CORRECT']
    """

    generate: Generate
    model: str = "grader"

    def __call__(self, questions: Sequence[str], golds: Sequence[Gold], answers: Sequence[str]) -> list[str]:
        """One label per answer.

        Raises:
            ValueError: if no single label can be read twice; the message names the question and quotes the reply.
        """
        texts = [self.text(*one) for one in zip(questions, golds, answers, strict=True)]
        labels = [_label_of(reply) for reply in responses_of(self.generate, texts)]
        again = [i for i, label in enumerate(labels) if label is None]
        replies = responses_of(self.generate, [texts[i] + _REMINDER for i in again]) if again else []
        for i, reply in zip(again, replies, strict=True):
            labels[i] = _label_of(reply)
            if labels[i] is None:
                raise ValueError(
                    f"grader: cannot read one label for the question {questions[i]!r} from the reply {reply[:80]!r}; "
                    "expected A, B or C"
                )
        return [label for label in labels if label is not None]

    def text(self, question: str, gold: Gold, answer: str) -> str:
        """What the grading model is sent for one answer."""
        return GRADING.format(question=question, gold=" or ".join(aliases(gold)), answer=answer)


def _label_of(reply: str) -> str | None:
    plain = _REFERENCE.sub("", reply.replace("_", " "))
    labels = {_LETTERS[letter] for letter in _LETTER.findall(plain)}
    labels |= {word.upper().replace(" ", "_") for word in _VERDICT.findall(plain)}
    return labels.pop() if len(labels) == 1 and not _DOUBT.search(plain) else None

"""Question sets: ids, questions and accepted answers, read from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refusal_index.graders import Gold, aliases
from refusal_index.readers import read_rows

_QUESTION = ("question", "problem")  # `problem` is SimpleQA's name
_ANSWER = ("answer", "gold", "target")
_ID = ("question_id", "id")


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """N factual questions.

    Args:
        ids: N different names, by which results refer to a question.
        questions: N texts.
        golds: for each question its accepted answer, or several.

    Raises:
        ValueError: naming the question, for an empty set, different lengths, an empty text or a repeated id.
    """

    ids: tuple[str, ...]
    questions: tuple[str, ...]
    golds: tuple[Gold, ...]

    def __post_init__(self) -> None:
        if not self.ids:
            raise ValueError("questions: is empty; give at least one question")
        if not len(self.ids) == len(self.questions) == len(self.golds):
            raise ValueError(
                f"questions, golds and ids must have one length, got {len(self.questions)}, {len(self.golds)} and "
                f"{len(self.ids)}"
            )
        seen: set[str] = set()
        for id, question, gold in zip(self.ids, self.questions, self.golds, strict=True):
            if id in seen:
                raise ValueError(f"ids: {id!r} occurs twice; ids must differ")
            seen.add(id)
            if not isinstance(question, str) or not question.strip():
                raise ValueError(f"questions: the text of question {id!r} is empty or no text")
            accepted = aliases(gold) if isinstance(gold, (str, list, tuple)) else ()
            if not accepted or not all(isinstance(alias, str) and alias.strip() for alias in accepted):
                raise ValueError(f"golds: the answer of question {id!r} is empty or no text")

    def head(self, limit: int | None) -> QuestionSet:
        """The first `limit` questions; all of them for None."""
        return QuestionSet(ids=self.ids[:limit], questions=self.questions[:limit], golds=self.golds[:limit])


def question_set(questions: Sequence[str], golds: Sequence[Gold], ids: Sequence[str] | None = None) -> QuestionSet:
    """A checked question set; without ids the questions are numbered from 0.

    >>> question_set(["Who painted Guernica?"], ["Picasso"]).ids
    ('0',)

    Raises:
        ValueError: in one line, for a single text in place of a list, or what `QuestionSet` refuses.
    """
    for name, values in (("questions", questions), ("golds", golds), ("ids", () if ids is None else ids)):
        if isinstance(values, str) or not hasattr(values, "__len__"):
            raise ValueError(f"{name} must be a list, one entry for each question, got {type(values).__name__}")
    names = tuple(map(str, range(len(questions)) if ids is None else ids))
    return QuestionSet(ids=names, questions=tuple(questions), golds=tuple(golds))


def read_questions(path: Path) -> QuestionSet:
    """Reads questions from CSV or JSON lines.

    Columns: `question` (or `problem`, as in SimpleQA), `answer` (or `gold`, `target`; in JSON lines it may be a list
    of accepted answers) and, if there is one, `question_id` (or `id`); else questions are numbered from 0.

    Raises:
        ValueError: in one line naming the file.
    """
    table = read_rows(path)

    def column(names: tuple[str, ...]) -> str:
        found = next((name for name in names if name in table.columns), None)
        if found is None:
            raise ValueError(
                f"{path}: lacks a column {' or '.join(names)}; it has {', '.join(map(str, table.columns))}"
            )
        return found

    question, answer = column(_QUESTION), column(_ANSWER)
    ids = next((list(table[name]) for name in _ID if name in table.columns), None)
    try:
        return question_set(list(table[question]), list(table[answer]), ids)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

"""The two-pass evaluation: ask with permission to refuse, then ask again what was refused, forbidding it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from refusal_index.graded import FORCED, NOT_ATTEMPTED, graded_table
from refusal_index.graders import Generate, Gold, Grader, LLMGrader, aliases, exact_match, labels_of, responses_of
from refusal_index.journal import Journal, Key
from refusal_index.prompts import FORCED_PROMPT, PROMPTS, answer_of, is_refusal, require_no_leak
from refusal_index.questions import QuestionSet, question_set
from refusal_index.report import RefusalReport


class Template(Protocol):
    """A named way of asking a question."""

    @property
    def name(self) -> str: ...

    def render(self, question: str) -> str: ...


@dataclass(frozen=True, kw_only=True)
class TwoPassRunner:
    """Runs both passes over any text generator and grades what comes back.

    Pass 1 asks every question under every prompt: K·N generations. Pass 2 asks the questions refused at least once,
    forbidding refusal, and its answer serves all prompts: at most N generations. The two-pass index is attenuated
    when answers are sampled (the refusal and the error of one question become noisy); greedy decoding is not.

    Args:
        generate: from a list of texts to a list of responses of equal length.
        grader: `exact` (offline, strict) or a function (questions, golds, answers) -> labels; the grades of an
            `LLMGrader` are journalled too.
        prompts: `paper` for all four, or some of them by name, or templates of your own.
        forced: the template that forbids refusal.
        cache: the resume journal; the same call with the same file asks only what is missing.
        model: names the model and its generation settings in journal and report; entries of another name never match.
        batch_size: texts per call of `generate`; what a kill can lose at most.
        settings: what the report should say about the run, such as the temperature.
        progress: called with (prompt, finished, total) after each batch.

    Raises:
        ValueError: in one line, for an unknown prompt or grader or a batch size below 1.

    >>> runner = TwoPassRunner(generate=lambda texts: ["<answer>Paris</answer>"] * len(texts), prompts=["refuse-0"])
    >>> report = runner(["Where is the Louvre?", "Where is the Prado?"], ["Paris", "Madrid"])
    >>> list(report.table["label"])
    ['CORRECT', 'INCORRECT']
    """

    generate: Generate
    grader: Literal["exact"] | Grader = "exact"
    prompts: Literal["paper"] | Sequence[str | Template] = "paper"
    forced: Template = FORCED_PROMPT
    cache: Path | str | None = None
    model: str = "model"
    batch_size: int = 16
    settings: Mapping[str, Any] = field(default_factory=dict)
    progress: Callable[[str, int, int], None] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if isinstance(self.grader, str) and self.grader != "exact":
            raise ValueError(f"grader must be 'exact' or a function, got {self.grader!r}")
        self._templates()

    def __call__(
        self, questions: Sequence[str], golds: Sequence[Gold], ids: Sequence[str] | None = None
    ) -> RefusalReport:
        """Asks and grades N questions.

        Args:
            questions: N texts.
            golds: N accepted answers, or lists of them.
            ids: N different names; numbers from 0 by default.

        Raises:
            ValueError: for questions that do not fit together or that a prompt already answers, a damaged journal,
                or a generator or grader that returns something else than one text or label per question.
        """
        asked = question_set(questions, golds, ids)
        require_no_leak(list(asked.questions))
        journal = Journal(None if self.cache is None else Path(self.cache))
        rows: list[dict[str, Any]] = []
        everyone = range(len(asked.ids))
        refused: set[int] = set()
        for template in self._templates():
            responses = self._ask(template, 1, asked, everyone, journal)
            first = self._grade(asked, everyone, responses, template.name, 1, journal)
            refused |= {i for i in everyone if first[i]["label"] == NOT_ATTEMPTED}
            rows += first
        again = sorted(refused)
        responses = self._ask(self.forced, 2, asked, again, journal)
        rows += self._grade(asked, again, responses, FORCED, 2, journal)
        return RefusalReport(table=graded_table(rows), model=self.model, settings=dict(self.settings))

    def _templates(self) -> list[Template]:
        if isinstance(self.prompts, str) and self.prompts == "paper":
            return list(PROMPTS.values())
        if isinstance(self.prompts, str) or not isinstance(self.prompts, Sequence):
            raise ValueError(f"prompts must be 'paper' or a list such as ['refuse-1'], got {self.prompts!r}")
        chosen: list[Template] = []
        for prompt in self.prompts:
            if isinstance(prompt, str) and prompt not in PROMPTS:
                raise ValueError(f"prompts: {prompt!r} is none of {', '.join(PROMPTS)}")
            if not isinstance(prompt, str) and not (hasattr(prompt, "name") and hasattr(prompt, "render")):
                raise ValueError(f"prompts: {prompt!r} is neither a name nor a template with `name` and `render`")
            chosen.append(PROMPTS[prompt] if isinstance(prompt, str) else prompt)
        names = [template.name for template in chosen]
        if not names or len(set(names)) < len(names) or FORCED in names:
            raise ValueError(f"prompts: need different names other than {FORCED!r}, got {names}")
        return chosen

    def _ask(
        self, template: Template, number: Literal[1, 2], asked: QuestionSet, which: Sequence[int], journal: Journal
    ) -> list[str]:
        texts = {i: template.render(asked.questions[i]) for i in which}
        keys = {i: Key(self.model, _digest(texts[i]), asked.ids[i], number) for i in which}
        missing = [i for i in which if journal.get(keys[i]) is None]
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            responses = responses_of(self.generate, [texts[i] for i in batch])
            journal.add({keys[i]: response for i, response in zip(batch, responses, strict=True)})
            if self.progress is not None:
                self.progress(template.name, len(which) - len(missing) + start + len(batch), len(which))
        return [journal.get(keys[i]) or "" for i in which]

    def _grade(
        self,
        asked: QuestionSet,
        which: Sequence[int],
        responses: Sequence[str],
        prompt: str,
        number: int,
        journal: Journal,
    ) -> list[dict[str, Any]]:
        attempted = {i: answer_of(text) for i, text in zip(which, responses, strict=True) if not is_refusal(text)}
        label_of = self._labels(asked, attempted, journal)
        return [
            {
                "question_id": asked.ids[i],
                "prompt": prompt,
                "pass": number,
                "label": label_of.get(i, NOT_ATTEMPTED),
                "question": asked.questions[i],
                "gold": list(aliases(asked.golds[i])),
                "answer": answer_of(response),
                "response": response,
            }
            for i, response in zip(which, responses, strict=True)
        ]

    def _labels(self, asked: QuestionSet, attempted: Mapping[int, str], journal: Journal) -> dict[int, str]:
        grader = exact_match if isinstance(self.grader, str) else self.grader

        def graded(some: Sequence[int]) -> dict[int, str]:
            golds, answers = [asked.golds[i] for i in some], [attempted[i] for i in some]
            return dict(zip(some, labels_of(grader, [asked.questions[i] for i in some], golds, answers), strict=True))

        if not isinstance(grader, LLMGrader):
            # cheap to repeat, and a function that was corrected since must not meet its old grades
            return graded(list(attempted))
        texts = {i: grader.text(asked.questions[i], asked.golds[i], answer) for i, answer in attempted.items()}
        keys = {i: Key(grader.model, _digest(texts[i]), asked.ids[i], "grade") for i in attempted}
        missing = [i for i in attempted if journal.get(keys[i]) is None]
        for start in range(0, len(missing), self.batch_size):
            batch = graded(missing[start : start + self.batch_size])
            journal.add({keys[i]: label for i, label in batch.items()})
        return {i: journal.get(keys[i]) or NOT_ATTEMPTED for i in attempted}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

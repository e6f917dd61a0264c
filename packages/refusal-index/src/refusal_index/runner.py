"""The two-pass evaluation: ask with permission to refuse, then ask again what was refused, forbidding it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from refusal_index.graded import FORCED, LABELS, NOT_ATTEMPTED, graded_table
from refusal_index.graders import Generate, Gold, Grader, aliases, exact_match
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
        grader: `exact` (offline, strict) or a function (questions, golds, answers) -> labels.
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
            first = self._grade(asked, everyone, self._ask(template, 1, asked, everyone, journal), template.name, 1)
            refused |= {i for i in everyone if first[i]["label"] == NOT_ATTEMPTED}
            rows += first
        again = sorted(refused)
        rows += self._grade(asked, again, self._ask(self.forced, 2, asked, again, journal), FORCED, 2)
        return RefusalReport(table=graded_table(rows), model=self.model, settings=dict(self.settings))

    def _templates(self) -> list[Template]:
        if self.prompts == "paper":
            return list(PROMPTS.values())
        chosen: list[Template] = []
        for prompt in self.prompts:
            if isinstance(prompt, str) and prompt not in PROMPTS:
                raise ValueError(f"prompts: {prompt!r} is none of {', '.join(PROMPTS)}")
            chosen.append(PROMPTS[prompt] if isinstance(prompt, str) else prompt)
        names = [template.name for template in chosen]
        if not names or len(set(names)) < len(names) or FORCED in names:
            raise ValueError(f"prompts: need different names other than {FORCED!r}, got {names}")
        return chosen

    def _ask(
        self, template: Template, number: int, asked: QuestionSet, which: Sequence[int], journal: Journal
    ) -> list[str]:
        texts = {i: template.render(asked.questions[i]) for i in which}
        keys = {i: Key(self.model, _digest(texts[i]), asked.ids[i], number) for i in which}
        missing = [i for i in which if journal.get(keys[i]) is None]
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            responses = self.generate([texts[i] for i in batch])
            if len(responses) != len(batch) or not all(isinstance(response, str) for response in responses):
                raise ValueError(
                    f"generate: must return one text for each of {len(batch)}, got {len(responses)} values"
                )
            journal.add({keys[i]: response for i, response in zip(batch, responses, strict=True)})
            if self.progress is not None:
                self.progress(template.name, len(which) - len(missing) + start + len(batch), len(which))
        return [journal.get(keys[i]) or "" for i in which]

    def _grade(
        self, asked: QuestionSet, which: Sequence[int], responses: Sequence[str], prompt: str, number: int
    ) -> list[dict[str, Any]]:
        attempted = [(i, answer_of(text)) for i, text in zip(which, responses, strict=True) if not is_refusal(text)]
        grader = exact_match if isinstance(self.grader, str) else self.grader
        labels = grader(
            [asked.questions[i] for i, _ in attempted],
            [asked.golds[i] for i, _ in attempted],
            [a for _, a in attempted],
        )
        if len(labels) != len(attempted) or (foreign := sorted(set(labels) - set(LABELS))):
            got = f"{len(labels)} labels" if len(labels) != len(attempted) else repr(foreign[0])
            raise ValueError(f"grader: must return one of {', '.join(LABELS)} for each of {len(attempted)}, got {got}")
        label_of = {i: label for (i, _), label in zip(attempted, labels, strict=True)}
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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

"""The reference that the two-pass index stands in for: refusal and error probabilities by repeated sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from refusal_index.graded import CORRECT, NOT_ATTEMPTED
from refusal_index.graders import Generate, Gold, Grader, exact_match, labels_of, responses_of
from refusal_index.prompts import FORCED_PROMPT, PROMPTS, answer_of, is_refusal, require_no_leak
from refusal_index.questions import question_set
from refusal_index.runner import Template


@dataclass(frozen=True, kw_only=True, eq=False)
class SampledReference:
    """Frequencies over repeated samples of N questions, and what they say about knowledge-aware refusal.

    Args:
        ids: question ids.
        refusal: float[N], share of first-pass samples that refuse; 1 - refusal is the paper's P(Answering).
        error: float[N], share of forced samples that are not correct.
        spearman: Spearman correlation of refusal and error, the definition of RI; NaN if either is constant.
        auroc: AUROC of P(Answering) against correctness: the chance that a question whose forced answers are mostly
            right is answered more readily than one whose are not; NaN if all are of one kind.
    """

    ids: tuple[str, ...]
    refusal: NDArray[np.float64]
    error: NDArray[np.float64]
    spearman: float
    auroc: float


def sampled_reference(
    generate: Generate,
    questions: Sequence[str],
    golds: Sequence[Gold],
    *,
    ids: Sequence[str] | None = None,
    samples: int = 100,
    prompt: Template = PROMPTS["refuse-1"],
    forced: Template = FORCED_PROMPT,
    grader: Grader = exact_match,
    batch_size: int = 16,
) -> SampledReference:
    """Asks every question `samples` times under both passes: 2·samples·N generations.

    r_i = share of refusals under `prompt`, w_i = share of answers under `forced` that are not correct, and
    RI ≔ Spearman(r_i, w_i) (paper, section 3; the paper samples 100 times at temperature 1).

    Args:
        generate: must sample; a greedy generator gives every question one and the same answer.
        questions: N texts.
        golds: N accepted answers, or lists of them.
        ids: N names; numbers from 0 by default.
        samples: per question and pass.
        prompt: first-pass template.
        forced: template that forbids refusal.
        grader: from (questions, golds, answers) to labels.
        batch_size: texts per call of `generate`.

    Raises:
        ValueError: for samples or a batch size below 1, questions that do not fit together, or a generator or grader
            that returns something else than one text or label per question.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    asked = question_set(questions, golds, ids)
    require_no_leak(list(asked.questions))
    n = len(asked.ids)
    who = np.repeat(np.arange(n), samples)

    def responses(template: Template) -> list[str]:
        texts = [template.render(asked.questions[i]) for i in who]
        batches = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
        return [response for batch in batches for response in responses_of(generate, batch)]

    def labels(replies: list[str]) -> list[str]:
        said = [answer_of(reply) for reply in replies]
        marks = labels_of(grader, [asked.questions[i] for i in who], [asked.golds[i] for i in who], said)
        return [NOT_ATTEMPTED if is_refusal(r) else mark for r, mark in zip(replies, marks, strict=True)]

    refusal = (np.array(labels(responses(prompt))) == NOT_ATTEMPTED).reshape(n, samples).mean(1)
    error = (np.array(labels(responses(forced))) != CORRECT).reshape(n, samples).mean(1)
    right = error < 0.5
    return SampledReference(
        ids=asked.ids,
        refusal=refusal,
        error=error,
        spearman=float(spearmanr(refusal, error).statistic) if np.ptp(refusal) and np.ptp(error) else float("nan"),
        auroc=float(roc_auc_score(right, 1 - refusal)) if 0 < right.sum() < n else float("nan"),
    )

"""inspect-ai: evaluation logs (`.eval` or `.json`)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from inspect_ai.log import EvalSample, read_eval_log
from inspect_ai.scorer import CORRECT as C
from inspect_ai.scorer import INCORRECT as I
from inspect_ai.scorer import NOANSWER, PARTIAL, Score

from refusal_index.graded import CORRECT, INCORRECT, NOT_ATTEMPTED
from refusal_index.readers import Marks

_LABELS = {C: CORRECT, I: INCORRECT, PARTIAL: INCORRECT, NOANSWER: NOT_ATTEMPTED, "1": CORRECT, "0": INCORRECT}


def inspect_rows(path: Path, marks: Marks) -> pd.DataFrame:
    """Graded rows of one log: refused by the text of the completion or a score N, else CORRECT iff the score is C or 1.

    A partial score (P) counts as INCORRECT. The task names the prompt.

    Raises:
        ValueError: in one line naming the file, if it is no log, did not finish, has a failed sample, several epochs
            or several scorers of which none is chosen, or a score that is none of C, I, P, N, 1, 0.
    """
    try:
        log = read_eval_log(str(path))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: cannot be read as a log of inspect-ai ({reason})") from None
    if log.status != "success" or not log.samples:
        raise ValueError(f"{path}: the evaluation ended as {log.status!r} with {len(log.samples or [])} samples")
    if any(sample.epoch != 1 for sample in log.samples):
        raise ValueError(f"{path}: holds several epochs; the two passes need one answer per question")
    return pd.DataFrame(
        [
            {
                "question_id": str(sample.id),
                "label": _label(sample, path, marks),
                "response": sample.output.completion,
                "prompt": log.eval.task,
            }
            for sample in log.samples
        ]
    )


def _label(sample: EvalSample, path: Path, marks: Marks) -> str:
    if sample.error is not None:
        raise ValueError(f"{path}: sample {sample.id!r} failed; repeat it before scoring")
    if marks.is_refusal(sample.output.completion):
        return NOT_ATTEMPTED
    value = _score(sample, path, marks).value
    name = str(int(value)) if isinstance(value, (bool, int, float)) and value in (0, 1) else str(value)
    if name not in _LABELS:
        raise ValueError(f"{path}: the score of sample {sample.id!r} is {value!r}, expected C, I, P, N, 1 or 0")
    return _LABELS[name]


def _score(sample: EvalSample, path: Path, marks: Marks) -> Score:
    scores = sample.scores or {}
    chosen = marks.scorer if marks.scorer is not None else next(iter(scores), None) if len(scores) == 1 else None
    if chosen is None or chosen not in scores:
        raise ValueError(
            f"{path}: sample {sample.id!r} was scored by {', '.join(scores) or 'nobody'}; choose by scorer"
        )
    return scores[chosen]

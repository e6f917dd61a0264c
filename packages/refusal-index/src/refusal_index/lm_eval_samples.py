"""lm-evaluation-harness: the `samples_*.jsonl` files that `--log_samples` writes (no import of the harness)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from refusal_index.graded import CORRECT, INCORRECT, NOT_ATTEMPTED
from refusal_index.readers import Marks

_NAME = re.compile(r"samples_(?P<task>.+?)(?:_\d{4}-\d{2}-\d{2}T[\d.\-:]+)?$")


def lm_eval_rows(samples: pd.DataFrame, path: Path, marks: Marks) -> pd.DataFrame:
    """Graded rows of one logged task: refused by the text of the response, else CORRECT iff the metric is 1.

    Args:
        samples: the lines of the file, with `doc_id`, `resps` and the metric.
        path: the file; `samples_TASK_TIME.jsonl` names the prompt.
        marks: metric, filter and refusal.

    Raises:
        ValueError: in one line naming the file, if fields or the metric are missing, the metric is not 0 or 1,
            several filters are logged and none chosen, a document has several responses, or the task is not one of
            generation.
    """
    if missing := {"doc_id", "resps"} - set(samples.columns):
        raise ValueError(f"{path}: lacks {sorted(missing)[0]}; expected samples of lm-evaluation-harness")
    if samples["doc_id"].isna().any():
        raise ValueError(f"{path}: doc_id is missing in row {int(samples['doc_id'].isna().argmax()) + 1}")
    if "filter" in samples.columns:
        if samples["filter"].isna().any():
            raise ValueError(f"{path}: only some rows name a filter; leave the others out")
        filters = sorted(set(map(str, samples["filter"])))
        if marks.filter is None and len(filters) > 1:
            raise ValueError(f"{path}: was logged with the filters {', '.join(filters)}; choose one by filter")
        if marks.filter is not None and marks.filter not in filters:
            raise ValueError(f"{path}: has no filter {marks.filter!r}; it has {', '.join(filters)}")
        samples = samples[samples["filter"] == (marks.filter or filters[0])]
    if marks.metric not in samples.columns:
        named = samples["metrics"].iloc[0] if "metrics" in samples.columns else None
        logged = named if isinstance(named, list) else samples.columns
        raise ValueError(f"{path}: has no metric {marks.metric!r}; choose one of {', '.join(map(str, logged))}")
    found = _NAME.match(path.stem)
    rows = []
    for sample in samples.to_dict("records"):
        response, value = _response(sample, path), sample[marks.metric]
        if value not in (0, 1):
            raise ValueError(f"{path}: {marks.metric} of document {sample['doc_id']} is {value}, expected 0 or 1")
        label = NOT_ATTEMPTED if marks.is_refusal(response) else CORRECT if value else INCORRECT
        rows.append({"question_id": str(sample["doc_id"]), "label": label, "response": response})
    table = pd.DataFrame(rows).assign(prompt=found["task"] if found else path.stem)
    return table.assign(doc_hash=samples["doc_hash"].to_list()) if "doc_hash" in samples.columns else table


def _response(sample: dict[Any, Any], path: Path) -> str:
    # `resps` holds, per request, the responses before any filter; a generation task has one request
    response: Any = sample["resps"]
    while isinstance(response, list) and len(response) == 1:
        response = response[0]
    if isinstance(response, list) and len(response) > 1 and all(isinstance(each, str) for each in response):
        raise ValueError(
            f"{path}: document {sample['doc_id']} has {len(response)} responses; log one response per document"
        )
    if not isinstance(response, str):
        raise ValueError(f"{path}: document {sample['doc_id']} has no text response; only generation tasks can refuse")
    return response

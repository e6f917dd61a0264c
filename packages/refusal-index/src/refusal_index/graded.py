"""Graded results: one row per question, prompt and pass, and the two binary outcomes R and Ŵ read from them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

CORRECT, INCORRECT, NOT_ATTEMPTED = "CORRECT", "INCORRECT", "NOT_ATTEMPTED"
LABELS = (CORRECT, INCORRECT, NOT_ATTEMPTED)
FORCED = "forced"  # as the prompt of a second-pass row: this answer serves every first-pass prompt
COLUMNS = ("question_id", "prompt", "pass", "label")


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """The two outcomes of each question under one prompt, in the order of `ids`.

    R_i = 1 iff the first pass refused; Ŵ_i = R_i·W'_i + (1 − R_i)·W_i, where W' is the outcome of the second pass.

    Args:
        ids: question ids, length n.
        refused: bool[n], R.
        wrong: bool[n], Ŵ.
    """

    ids: tuple[str, ...]
    refused: np.ndarray
    wrong: np.ndarray

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """(n11, n10, n01, n00) with n_ab = #{R = a, Ŵ = b}."""
        r, w = self.refused, self.wrong
        return int((r & w).sum()), int((r & ~w).sum()), int((~r & w).sum()), int((~r & ~w).sum())

    def only(self, ids: Collection[str]) -> Outcomes:
        """The outcomes of some of the questions, in the same order."""
        kept = [i for i, id in enumerate(self.ids) if id in ids]
        return Outcomes(ids=tuple(self.ids[i] for i in kept), refused=self.refused[kept], wrong=self.wrong[kept])


def graded_table(rows: Iterable[Mapping[str, Any]] | pd.DataFrame, *, source: str = "results") -> pd.DataFrame:
    """Checks graded results and returns them as a frame whose first columns are `COLUMNS`.

    Second-pass rows carry the name of the first-pass prompt they belong to, or `forced` when one forced answer
    serves every prompt. Further columns (question, gold, answer, response) are kept as they are.

    Args:
        rows: mappings or a frame with question_id, prompt, pass (1 or 2) and label (CORRECT, INCORRECT,
            NOT_ATTEMPTED).
        source: what to call the input in an error message, such as a file name.

    Raises:
        ValueError: in one line, for an empty table, a missing column or value, a label outside the three classes,
            a pass other than 1 and 2, a repeated (question, prompt, pass), or a second pass that fits no first pass.

    >>> list(graded_table([{"question_id": 7, "prompt": "p", "pass": 1, "label": "CORRECT"}])["question_id"])
    ['7']
    """
    table = rows.copy() if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    if table.empty:
        raise ValueError(f"{source}: holds no graded results; expected the columns {', '.join(COLUMNS)}")
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise ValueError(f"{source}: lacks the column {missing[0]}; expected {', '.join(COLUMNS)}")
    for name in COLUMNS:
        absent = table[name].isna() | (table[name].astype(str).str.strip() == "")
        if absent.any():
            row = int(np.flatnonzero(absent)[0]) + 1
            raise ValueError(f"{source}: {name} is missing in row {row}; every row needs {', '.join(COLUMNS)}")
    for name in ("question_id", "prompt", "label"):
        table[name] = [str(value) for value in table[name]]
    if foreign := sorted(set(table["label"]) - set(LABELS)):
        where = table.loc[table["label"] == foreign[0], "question_id"].iloc[0]
        raise ValueError(f"{source}: label {foreign[0]!r} of question {where!r} is none of {', '.join(LABELS)}")
    passes = [pass_text(value) for value in table["pass"]]
    if strange := sorted(set(passes) - {"1", "2"}):
        raise ValueError(f"{source}: pass must be 1 or 2, got {strange[0]!r}")
    table["pass"] = [int(value) for value in passes]
    repeated = table[table.duplicated(["question_id", "prompt", "pass"])]
    if len(repeated):
        first = repeated.iloc[0]
        raise ValueError(
            f"{source}: question {first['question_id']!r} occurs twice under prompt {first['prompt']!r}, "
            f"pass {first['pass']}; keep one row"
        )
    _check_second_pass(table, source)
    return table[[*COLUMNS, *(name for name in table.columns if name not in COLUMNS)]].reset_index(drop=True)


def pass_text(value: Any) -> str:
    """A pass as text; pandas makes 1 and 2 floats where a column had gaps.

    >>> pass_text(2.0), pass_text("1")
    ('2', '1')
    """
    return str(value).removesuffix(".0")


def _check_second_pass(table: pd.DataFrame, source: str) -> None:
    first, second = table[table["pass"] == 1], table[table["pass"] == 2]
    if first.empty:
        raise ValueError(f"{source}: holds no first-pass row (pass 1)")
    prompts = set(first["prompt"])
    if foreign := sorted(set(second["prompt"]) - prompts - {FORCED}):
        raise ValueError(
            f"{source}: second-pass prompt {foreign[0]!r} is no first-pass prompt ({', '.join(sorted(prompts))}); "
            f"name the prompt it belongs to, or {FORCED!r}"
        )
    if strangers := sorted(set(second["question_id"]) - set(first["question_id"])):
        raise ValueError(f"{source}: second pass answers {_named(strangers)}, which the first pass never asked")


def outcomes(table: pd.DataFrame) -> dict[str, Outcomes]:
    """The outcomes (R, Ŵ) of every first-pass prompt, in the order in which the prompts appear.

    A refused question takes its second-pass label; NOT_ATTEMPTED counts as wrong there. Second-pass answers to
    questions that were not refused are left aside.

    Args:
        table: what `graded_table` returned.

    Raises:
        ValueError: if a refused question has no second-pass label; the message names it.
    """
    second = table[table["pass"] == 2]
    forced = {
        (prompt, id): label
        for id, prompt, label in zip(second["question_id"], second["prompt"], second["label"], strict=True)
    }
    found: dict[str, Outcomes] = {}
    for name, rows in table[table["pass"] == 1].groupby("prompt", sort=False):
        prompt = str(name)
        ids = tuple(str(id) for id in rows["question_id"])
        labels = rows["label"].to_numpy(dtype=str)
        refused = labels == NOT_ATTEMPTED
        wrong = labels == INCORRECT
        lacking = []
        for i in np.flatnonzero(refused):
            label = forced.get((prompt, ids[i]), forced.get((FORCED, ids[i])))
            if label is None:
                lacking.append(ids[i])
            wrong[i] = label != CORRECT
        if lacking:
            raise ValueError(
                f"prompt {prompt!r}: {_named(lacking)} refused in the first pass, without a second-pass label; "
                "ask again with a prompt that forbids refusal"
            )
        found[prompt] = Outcomes(ids=ids, refused=refused, wrong=wrong)
    return found


def stacked(results: Mapping[str, Outcomes]) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Stacks outcomes on the same questions: (ids, refused bool[K, N], wrong bool[K, N]).

    Raises:
        ValueError: naming the questions that not every one of the K results has.
    """
    first_name, first = next(iter(results.items()))
    refused, wrong = [], []
    for name, result in results.items():
        if different := sorted(set(result.ids) ^ set(first.ids)):
            raise ValueError(f"{first_name!r} and {name!r} do not share {_named(different)}")
        position = {id: i for i, id in enumerate(result.ids)}
        order = [position[id] for id in first.ids]
        refused.append(result.refused[order])
        wrong.append(result.wrong[order])
    return first.ids, np.array(refused), np.array(wrong)


def _named(ids: Sequence[str], at_most: int = 5) -> str:
    more = f" and {len(ids) - at_most} more" if len(ids) > at_most else ""
    return f"question{'s' if len(ids) > 1 else ''} {', '.join(map(repr, ids[:at_most]))}{more}"

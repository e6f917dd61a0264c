"""Results files of three formats, brought into one graded table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from refusal_index.graded import FORCED, graded_table, pass_text
from refusal_index.prompts import REFUSAL, answer_of

Format = Literal["auto", "table", "lm-eval", "inspect"]


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Which mark of a results file decides a label; for the formats of evaluation harnesses.

    Args:
        metric: lm-evaluation-harness: the 0/1 metric that says correct.
        filter: lm-evaluation-harness: the filter whose rows count, needed when a file has several.
        scorer: inspect-ai: the scorer that counts, needed when a log has several.
        refusal: regular expression; an answer that it matches as a whole is a refusal.

    Raises:
        ValueError: if `refusal` is not a regular expression.
    """

    metric: str = "exact_match"
    filter: str | None = None
    scorer: str | None = None
    refusal: str = REFUSAL

    def __post_init__(self) -> None:
        try:
            re.compile(self.refusal)
        except re.error as error:
            raise ValueError(f"refusal: {self.refusal!r} is not a regular expression ({error})") from None

    def is_refusal(self, response: str) -> bool:
        """Whether the first answer tag, or the whole response where there is none, is a refusal."""
        return re.fullmatch(self.refusal, answer_of(response)) is not None


def read_results(
    paths: Sequence[Path | str] | Path | str,
    forced: Path | str | None = None,
    *,
    format: Format = "auto",
    marks: Marks | None = None,
) -> pd.DataFrame:
    """Reads the first pass, and the second pass where it has a file of its own, into a graded table.

    A table (CSV or JSON lines) without a `prompt` column is one prompt, named after its file; without a `pass`
    column it is the first pass. A log of lm-evaluation-harness or inspect-ai is one prompt, named after its task.
    Rows of `forced` are the second pass and serve every prompt unless they name one.

    Args:
        paths: one file, or one per prompt.
        forced: the file of the second pass.
        format: `auto` looks at the file.
        marks: which mark decides a label, for the formats of harnesses.

    Raises:
        ValueError: in one line naming the file, for what cannot be read or what `graded_table` finds.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "weak.csv"
    >>> _ = path.write_text("question_id,label\\nq1,CORRECT\\nq2,INCORRECT\\n")
    >>> read_results([path]).values.tolist()
    [['q1', 'weak', 1, 'CORRECT'], ['q2', 'weak', 1, 'INCORRECT']]
    """
    marks = marks or Marks()
    if isinstance(paths, (str, Path)):
        paths = [paths]
    if not paths:
        raise ValueError("paths: name at least one results file")
    tables = [_one_pass(Path(path), format, marks, prompt=None, number=1) for path in paths]
    names = [Path(path).name for path in paths]
    if forced is not None:
        second = _one_pass(Path(forced), format, marks, prompt=FORCED, number=2)
        if set(map(pass_text, second["pass"])) != {"2"}:
            raise ValueError(f"{forced}: forced answers are pass 2; leave the column `pass` out or set it to 2")
        tables.append(second)
        names.append(Path(forced).name)
    source = " + ".join(names)
    table = graded_table(pd.concat(tables, ignore_index=True), source=source)
    if "doc_hash" in table.columns:
        _require_same_documents(table, source)
    return table


def _require_same_documents(table: pd.DataFrame, source: str) -> None:
    # lm-evaluation-harness numbers documents from 0 in every task: equal ids alone do not make them the same question
    found = table.groupby("question_id", sort=False)["doc_hash"].nunique()
    if (found > 1).any():
        where = found.index[found > 1][0]
        raise ValueError(f"{source}: document {where} is not the same question everywhere (doc_hash differs)")


def _one_pass(path: Path, format: Format, marks: Marks, *, prompt: str | None, number: int) -> pd.DataFrame:
    if format == "inspect" or (format == "auto" and _is_inspect_log(path)):
        from refusal_index.inspect_log import inspect_rows

        table = inspect_rows(path, marks)
    else:
        table = read_rows(path)
        if format == "lm-eval" or (format == "auto" and {"doc_id", "resps"} <= set(table.columns)):
            from refusal_index.lm_eval_samples import lm_eval_rows

            table = lm_eval_rows(table, path, marks)
        elif "prompt" in table.columns:
            prompt = None
    if prompt is not None or "prompt" not in table.columns:
        table["prompt"] = prompt or path.stem
    if "pass" not in table.columns:
        table["pass"] = number
    return table


def _is_inspect_log(path: Path) -> bool:
    if path.suffix != ".json":
        return path.suffix == ".eval"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"version", "eval"} <= content.keys()


def read_rows(path: Path) -> pd.DataFrame:
    """Reads a CSV (`.csv`) or JSON-lines file into a frame of unchanged text and numbers.

    Raises:
        ValueError: in one line naming the file and line, if it is missing, empty or malformed.
    """
    try:
        if path.suffix.lower() == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
            if table.empty:
                raise ValueError(f"{path}: is empty")
            return table
        rows = list(json_lines(path.read_text(encoding="utf-8"), path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path}: is empty") from None
    except pd.errors.ParserError as error:
        raise ValueError(f"{path}: is not a CSV table ({str(error).strip()})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8 text") from None
    if not rows:
        raise ValueError(f"{path}: is empty")
    return pd.DataFrame(rows)


def json_lines(text: str, path: Path) -> Iterable[dict[str, Any]]:
    """Parses JSON lines, one object each; blank lines are skipped.

    Raises:
        ValueError: in one line naming file and line, if a line is not a JSON object.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number} is not a JSON object")
        yield row

"""The resume journal: every finished generation and grade as one flushed line, which no kill can lose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, NamedTuple

HEADER = json.dumps({"journal": "refusal-index", "version": 1})


class Key(NamedTuple):
    """What makes a response the same: the model with its settings, the text sent, the question and the pass.

    The grade of an answer is kept beside the answers, with the grading model, the grading text and stage `grade`.
    """

    model: str
    prompt: str
    question_id: str
    stage: Literal[1, 2, "grade"]


class Journal:
    """Responses by key, in memory and, given a path, in an append-only JSON-lines file.

    A last line that was cut off (the process was killed while writing) is dropped; entries of another model or
    prompt stay in the file and simply never match.

    Args:
        path: the file, which need not exist yet; None keeps everything in memory.

    Raises:
        ValueError: in one line naming file and line, if the file is not such a journal or was damaged.

    >>> journal = Journal(None)
    >>> journal.add({Key("m", "p", "1", 1): "Paris"}); journal.get(Key("m", "p", "1", 1))
    'Paris'
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._responses: dict[Key, str] = {}
        if path is not None and path.exists():
            self._read(path)

    def get(self, key: Key) -> str | None:
        """The response, or None if this was never asked."""
        return self._responses.get(key)

    def add(self, responses: dict[Key, str]) -> None:
        """Keeps responses; each line is handed to the operating system before the next is written."""
        if self.path is not None and responses:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                if file.tell() == 0:
                    file.write(f"{HEADER}\n".encode())
                for key, response in responses.items():
                    line = {
                        "model": key.model,
                        "prompt": key.prompt,
                        "id": key.question_id,
                        "pass": key.stage,
                        "response": response,
                    }
                    file.write(f"{json.dumps(line, ensure_ascii=False)}\n".encode())
                    file.flush()
        self._responses.update(responses)

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
        whole, _, torn = content.rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        if lines[:1] != [HEADER.encode()] and not (not lines and HEADER.encode().startswith(torn)):
            raise ValueError(f"{path}: line 1 is not the header of a refusal-index journal; choose another file")
        for number, line in enumerate(lines[1:], start=2):
            try:
                row = json.loads(line)
                key = Key(row["model"], row["prompt"], row["id"], row["pass"])
                response = row["response"]
                if not (all(isinstance(value, str) for value in (*key[:3], response)) and key.stage in (1, 2, "grade")):
                    raise TypeError
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path}: line {number} is damaged; delete that line or the file") from None
            self._responses[key] = response
        if torn:
            # the next append must start on a line of its own
            with path.open("r+b") as file:
                file.truncate(len(content) - len(torn))

"""One worker process: runs the arms of one seed after another and writes each record as it finishes."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from aisec_common import env
from aisec_common.result import Record, finite, samples_text, text_hash, write_record
from aisec_common.rooms import Room
from aisec_common.study import ScaleName, Study, content_hash

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class Task:
    """The unfinished arms of one seed of one room: they share what `Study.prepare` makes, so one worker runs them."""

    room: Room
    scale: ScaleName
    seed: int
    arms: tuple[str, ...]
    conditions: Mapping[str, Any]
    folder: Path
    command: str


@dataclass(frozen=True, kw_only=True)
class Message:
    """What a worker says: an arm moved on (`fraction`), finished, failed (`error`), or the whole task ended."""

    kind: str
    arm: str = ""
    fraction: float = 0.0
    error: str = ""


@dataclass
class _Log:
    """The TrialLog of one trial."""

    connection: Connection
    arm: str
    samples: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    told: float = 0.0

    def sample(self, id: str, **values: Any) -> None:
        if str(id) in self.samples:
            raise ValueError(f"sample id {id!r} was logged twice in arm {self.arm}")
        self.samples[str(id)] = values

    def progress(self, done: int, total: int) -> None:
        if time.monotonic() - self.told > 0.2:
            self.told = time.monotonic()
            self.connection.send(Message(kind="moved", arm=self.arm, fraction=min(1.0, done / max(1, total))))

    def data(self, name: str, content: Any) -> None:
        self.hashes[name] = content_hash(content)


def conditions(room: Room, study: Study, scale: ScaleName) -> dict[str, Any]:
    """What must agree before a finished record counts on resume: room, settings, code and versions.

    Seeds and arms are no setting: there may be more. `code` covers the room's package and aisec-common.
    """
    settings = {name: value for name, value in asdict(study.scales[scale]).items() if name not in ("seeds", "arms")}
    return {
        "room": room.name,
        "scale": scale,
        "config": json.loads(json.dumps(finite(settings))),  # as a record gives it back: tuples are lists there
        "code": env.code_hash(room.package, Path(__file__).parent),
        "versions": env.versions(room.distribution),
    }


def serve(connection: Connection) -> None:
    """Runs tasks from `connection` until it closes. One torch thread: a number must not depend on how many run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides and ends us
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        _run(task, connection)
        connection.send(Message(kind="ended"))


def _run(task: Task, connection: Connection) -> None:
    arm = task.arms[0]
    try:
        study = task.room.load()
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        if conditions(task.room, study, task.scale) != task.conditions:
            raise RuntimeError("code or versions changed while the run was going on; start it again")
        scale = study.scales[task.scale]
        prepared = study.prepare(task.seed, scale) if study.prepare else None
        for arm in task.arms:
            _trial(task, study, arm, prepared, connection)
    except BrokenPipeError:
        os._exit(1)  # the parent is gone
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        text = " ".join(f"{type(error).__name__}: {error} ({where})".split())
        connection.send(Message(kind="failed", arm=arm, error=text))


def _trial(task: Task, study: Study, arm: str, prepared: Any, connection: Connection) -> None:
    log = _Log(connection, arm)
    connection.send(Message(kind="moved", arm=arm))
    env.reset_peak_memory()
    start = time.perf_counter()
    metrics = study.trial(arm, prepared, task.seed, study.scales[task.scale], log)
    seconds = time.perf_counter() - start
    try:
        metrics = {str(name): float(value) for name, value in metrics.items()}
    except (AttributeError, TypeError, ValueError):
        raise TypeError(f"trial of arm {arm!r} must return a mapping of numbers, not {metrics!r}") from None
    record = Record(
        **task.conditions,
        arm=arm,
        seed=task.seed,
        metrics=metrics,
        data=log.hashes,
        seconds=round(seconds, 3),
        peak_memory_mib=env.peak_memory_mib(),
        device=env.device(),
        command=task.command,
        git=env.git_commit(task.room.package),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        samples_sha256=text_hash(samples_text(log.samples)),
    )
    write_record(task.folder, record, log.samples)
    connection.send(Message(kind="finished", arm=arm))

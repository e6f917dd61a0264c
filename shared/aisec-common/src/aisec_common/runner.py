"""Runs studies: seeds x arms over worker processes, each finished trial safe on disk, the rest resumable."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from aisec_common.env import command
from aisec_common.result import read_records
from aisec_common.rooms import Room
from aisec_common.study import ScaleName, Study
from aisec_common.worker import Message, Task, conditions, serve


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a run stands: finished trials of all, what runs now, and the estimated seconds left (None at first)."""

    finished: int
    total: int
    running: tuple[str, ...]
    seconds_left: float | None


Show = Callable[[Status], None]


def plan(
    studies: Mapping[Room, Study],
    folder: Path,
    scale: ScaleName,
    seeds: int | None = None,
    arms: Collection[str] | None = None,
) -> tuple[list[Task], int]:
    """The tasks that are not on disk yet, and the number of trials that are.

    Args:
        studies: the loaded study of each room.
        folder: the folder of records; finished trials in it are kept.
        scale: which settings of the studies.
        seeds: number of seeds instead of the scale's own.
        arms: those to run instead of the scale's own.

    Raises:
        ValueError: if a record in `folder` is torn, foreign, or was made by other code, settings or scale; for an
            unknown arm.
    """
    tasks = []
    done = 0
    for room, study in studies.items():
        for leftover in (folder / room.name).glob("*/.seed-*.tmp"):
            leftover.unlink(missing_ok=True)  # a write that was killed
        records = read_records(folder, room.name)
        known = conditions(room, study, scale)
        for seed, by_arm in records.items():
            for arm, (record, _) in by_arm.items():
                if differing := record.differing(known):
                    raise ValueError(
                        f"{folder / room.name}: arm {arm} of seed {seed} was made with another "
                        f"{' and '.join(differing)}; start anew without --resume"
                    )
        runnable = study.runnable_arms(scale, arms)
        for seed in range(seeds or study.scales[scale].seeds):
            open_arms = tuple(arm for arm in runnable if arm not in records.get(seed, {}))
            done += len(runnable) - len(open_arms)
            if open_arms:
                tasks.append(
                    Task(
                        room=room,
                        scale=scale,
                        seed=seed,
                        arms=open_arms,
                        conditions=known,
                        folder=folder,
                        command=command(),
                    )
                )
    return tasks, done


def run(
    tasks: Sequence[Task], *, jobs: int | None = None, done: int = 0, show: Show = lambda status: None
) -> list[str]:
    """Runs tasks in worker processes, one seed of one room at a time each, for the whole run.

    A trial that raises, or a worker that dies (out of memory, say), costs its own seed only; the rest goes on.

    Args:
        tasks: from `plan`.
        jobs: workers; default one per core.
        done: trials that were finished before, for the progress.
        show: called with the Status whenever it changes.

    Returns:
        One line per failed trial, naming room, seed, arm and error.

    Raises:
        KeyboardInterrupt: on Ctrl-C, after the workers are ended; what was finished stays.
    """
    pool = _Pool(list(tasks), done, show)
    try:
        return pool.run(min(jobs or os.cpu_count() or 1, len(tasks)))
    finally:
        pool.close()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Holds Ctrl-C back while a worker is born: it inherits the mask, so only the parent ever answers."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    task: Task | None = None
    arm: str = ""
    fraction: float = 0.0


@dataclass
class _Pool:
    waiting: list[Task]
    done: int
    show: Show
    workers: list[_Worker] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def run(self, jobs: int) -> list[str]:
        self.before, self.started = self.done, time.monotonic()
        self.total = self.done + sum(len(task.arms) for task in self.waiting)
        for _ in range(jobs):
            self._hire()
        while any(worker.task for worker in self.workers):
            self._tell()
            wait([worker.connection for worker in self.workers], timeout=1.0)
            for worker in list(self.workers):
                alive = worker.process.is_alive()  # asked first: what it said before it died is heard first
                try:
                    if worker.connection.poll():
                        self._hear(worker, worker.connection.recv())
                    elif not alive:  # its pipe may stay open in a process that its trial started
                        self._bury(worker)
                except (EOFError, OSError):
                    self._bury(worker)
        self._tell()
        return self.failures

    def close(self) -> None:
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()
            worker.connection.close()

    def _hire(self) -> None:
        context = multiprocessing.get_context("spawn")  # fork is unsafe once torch or OpenMP threads run
        connection, other = context.Pipe()
        process = context.Process(target=serve, args=(other,))  # no daemon: a trial may start processes of its own
        with _interrupts_held():
            process.start()
        other.close()
        worker = _Worker(process, connection)
        self.workers.append(worker)
        self._give(worker)

    def _give(self, worker: _Worker) -> None:
        worker.task = self.waiting.pop(0) if self.waiting else None
        worker.fraction, worker.arm = 0.0, ""
        if worker.task:
            with suppress(BrokenPipeError):  # a dead worker is buried when its pipe is read
                worker.connection.send(worker.task)

    def _hear(self, worker: _Worker, message: Message) -> None:
        worker.arm, worker.fraction = message.arm, message.fraction
        if message.kind == "finished":
            self.done += 1
        elif message.kind == "failed":
            self._fail(worker, message.error)
        elif message.kind == "ended":
            self._give(worker)

    def _bury(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        if worker.task:
            code = worker.process.exitcode
            self._fail(worker, f"the worker died (exit {code}{', out of memory?' if code == -9 else ''})")
        worker.connection.close()
        self.workers.remove(worker)
        if self.waiting:
            self._hire()

    def _fail(self, worker: _Worker, error: str) -> None:
        assert worker.task is not None
        arm = f" arm {worker.arm}" if worker.arm else ""
        self.failures.append(f"{worker.task.room.name} seed {worker.task.seed}{arm}: {error}")

    def _tell(self) -> None:
        busy = [worker for worker in self.workers if worker.task]
        work = self.done - self.before + sum(worker.fraction for worker in busy)
        elapsed = time.monotonic() - self.started
        left = elapsed * (self.total - self.before - work) / work if work > 0 else None
        running = tuple(f"{w.task.room.name} seed {w.task.seed} {w.arm}".strip() for w in busy if w.task)
        self.show(Status(finished=self.done, total=self.total, running=running, seconds_left=left))

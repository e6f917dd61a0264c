"""Shards of one game as tasks of a Ray cluster, whose hosts need share no disk: journals come back as they grow."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import ray
from aisec_common.files import write_atomic
from ray.exceptions import RayError, RayTaskError
from ray.util.queue import Queue

from impq.config import EstimateConfig
from impq.play import Progress

JOURNAL = "game.jsonl"
SECONDS = 1.0  # between two looks at what came back: what the end of this process can lose

Measure = Callable[[EstimateConfig, Progress], str]


def measured_on_ray(measure: Measure, parts: Sequence[EstimateConfig], progress: Progress) -> list[str]:
    """Plays each share of the walks in a Ray task of its own; returns what `measure` says of each.

    A task takes one CPU, and one GPU if its device asks for that; more tasks than the cluster has room for wait. A
    task plays in a temporary folder of its host, from the journal that is in `out` of its part here, and the journal
    in `out` is replaced after every walk: `out` is needed on this host only.

    The cluster is the one this process is connected to, else the one at RAY_ADDRESS or running on this host, else one
    that is started on this host; one that was connected to here is left again.

    Args:
        measure: plays one share and calls its second argument after every walk; found by name on every host.
        parts: the shares; model and texts are read on every host.
        progress: called as `progress(walks done, walks)` over all shares begun.

    Raises:
        ValueError: a task's own, or `device` asks for a GPU and no host has one.
        OSError: a host or its task was lost.
    """
    with _connected():
        gpus = _gpus(parts[0].device)
        queue = Queue(actor_options={"num_cpus": 0})
        play = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0, scheduling_strategy="SPREAD")(_played)
        done: dict[int, tuple[int, int]] = {}
        journals = [part.out / JOURNAL for part in parts]

        def keep() -> None:
            newest = {index: (counts, lines) for index, counts, lines in queue.get_nowait_batch(queue.qsize())}
            for index, (counts, lines) in newest.items():
                write_atomic(journals[index], lines)
                done[index] = counts
            if newest:
                progress(sum(count for count, _ in done.values()), sum(total for _, total in done.values()))

        tasks = [
            play.remote(measure, part, k, journal.read_bytes() if journal.exists() else b"", queue)
            for k, (part, journal) in enumerate(zip(parts, journals, strict=True))
        ]
        waiting = tasks
        try:
            while waiting:
                ended, waiting = ray.wait(waiting, timeout=SECONDS)
                keep()
                ray.get(ended)  # the first to fail ends all
            return list(ray.get(tasks))
        except RayTaskError as error:
            raise error.cause from None  # its own text is the worker's traceback
        except RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise OSError(
                f"ray: a shard was lost ({reason}); run the same command again, finished walks are kept"
            ) from None
        finally:
            for task in waiting:
                ray.cancel(task, force=True)
            queue.shutdown()


def _played(measure: Measure, part: EstimateConfig, index: int, lines: bytes, queue: Queue) -> str:
    """One share, played where it runs."""
    with TemporaryDirectory(prefix="impq-") as folder:
        journal = Path(folder) / JOURNAL
        if lines:
            journal.write_bytes(lines)

        def walked(done: int, total: int) -> None:
            queue.put((index, (done, total), journal.read_bytes()))

        try:
            return measure(replace(part, out=Path(folder)), walked)
        except ValueError as error:
            raise ValueError(str(error).replace(folder, str(part.out))) from None


@contextmanager
def _connected() -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster started here would report its use to its makers
    ray.init(log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
    try:
        yield
    finally:
        ray.shutdown()


def _gpus(device: str) -> int:
    """GPUs of one task: Ray hides from a task those it did not ask for."""
    found = ray.cluster_resources().get("GPU", 0) >= 1  # type: ignore[no-untyped-call]
    if device.startswith("cuda") and not found:
        raise ValueError(f"device: {device} needs a GPU, and no host of the Ray cluster has one")
    return int(found and (device == "auto" or device.startswith("cuda")))

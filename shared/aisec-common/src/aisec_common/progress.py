"""Live progress on stderr: a bar where rich is installed and the terminal can show one, else a line now and then."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aisec_common.runner import Show, Status

LINE_EVERY = 5.0  # seconds


@contextmanager
def live() -> Iterator[Show]:
    """Gives a function that shows a Status.

    >>> with live() as show:
    ...     show(Status(finished=1, total=1, running=(), seconds_left=0.0))
    """
    if sys.stderr.isatty() and importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            shown = bar.add_task("", total=None)
            yield lambda s: bar.update(shown, completed=s.finished, total=s.total, description=_words(s))
        return

    last = -LINE_EVERY

    def show(status: Status) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            print(f"{status.finished}/{status.total} trials  {_words(status)}", file=sys.stderr, flush=True)

    yield show


@contextmanager
def counting() -> Iterator[Callable[[str, int, int], None]]:
    """Gives a function (what, done, total) for the long work of a room's command: a bar, or a line, for each `what`.

    >>> with counting() as show:
    ...     show("questions", 1, 1)
    """
    if sys.stderr.isatty() and importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            tasks = {}

            def advance(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what, total=total)
                bar.update(tasks[what], completed=done)

            yield advance
        return

    last = -LINE_EVERY

    def line(what: str, done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            print(f"{what}: {done}/{total}", file=sys.stderr, flush=True)

    yield line


def _words(status: Status) -> str:
    left = "" if status.seconds_left is None else f"about {duration(status.seconds_left)} left  "
    return left + ", ".join(status.running)


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(75)
    '1 min 15 s'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"

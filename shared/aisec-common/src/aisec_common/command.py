"""How every room's command ends: 0, 1 if part of the work failed, one line and 2 on misuse, 130 on Ctrl-C."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from typing import Any, TypeVar

Config = TypeVar("Config")


def run_command(
    prog: str,
    config: Callable[..., Config] | Any,
    work: Callable[[Config], int | None],
    argv: Sequence[str] | None = None,
    *,
    needs: Mapping[str, str] | None = None,
) -> int:
    """Parses the words of a command into `config` with tyro and does `work` with it (extra `cli`).

    Args:
        prog: the command's name, which is the room's.
        config: a dataclass, or a union of dataclasses for verbs, that validates itself with ValueError.
        work: what to do; a ValueError or OSError it raises is misuse, told in one line.
        argv: the words; those of the process by default.
        needs: module -> extra of the room that brings it, for modules that may be absent.

    Returns:
        The exit status.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Greeting:
    ...     name: str
    >>> run_command("greet", Greeting, lambda greeting: print("Hello", greeting.name), ["--name", "Ada"])
    Hello Ada
    0
    """
    import tyro

    said = io.StringIO()
    try:
        with redirect_stderr(said):  # tyro frames its errors; a log wants one line
            parsed: Config = tyro.cli(config, prog=prog, args=argv)
    except SystemExit as ended:
        if ended.code:
            print(f"{prog}: {_reason(said.getvalue())}", file=sys.stderr)
        return int(ended.code or 0)
    except ValueError as error:  # raised by a default, outside of what tyro looks after
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    try:
        return work(parsed) or 0
    except (ValueError, OSError) as error:
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = (needs or {}).get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(f"{prog}: needs {error.name}: pip install 'aisec-{prog}[{extra}]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; what was finished is kept", file=sys.stderr)
        return 130


def _reason(framed: str) -> str:
    """What stands between the first two rules that tyro draws, on one line."""
    groups = re.split(r"(?m)^.*[─-]{5,}.*$", framed)
    words = " ".join(line.strip("│| ") for line in groups[min(1, len(groups) - 1)].splitlines())
    return re.sub(r"^Error parsing \w+: ", "", " ".join(words.split()))

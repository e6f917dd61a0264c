"""`aisec data list | fetch | path`: the verbs of the `aisec` command that concern fetched data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from aisec_common.data.fetching import fetch
from aisec_common.data.registry import checkpoint_path, is_fetched, known, spec_of


def add_data_verbs(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `aisec data` its verbs; each sets `run`, a function of the parsed arguments -> exit code.

    >>> parser = argparse.ArgumentParser(prog="aisec data")
    >>> add_data_verbs(parser)
    >>> parser.parse_args(["path", "fotom"]).name
    'fotom'
    """
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{list,fetch,path}")
    listing = verbs.add_parser("list", help="known checkpoints: name, download size, licence, fetched or not")
    listing.set_defaults(run=_one_line(_list))
    fetching = verbs.add_parser("fetch", help="download, verify and keep checkpoints in the user cache")
    fetching.add_argument("names", nargs="+", metavar="NAME", help="a name that `aisec data list` shows")
    fetching.add_argument("--offline", action="store_true", help="only check what the cache already holds")
    fetching.set_defaults(run=_one_line(_fetch))
    path = verbs.add_parser("path", help="print the folder of a fetched checkpoint")
    path.add_argument("name", metavar="NAME", help="a name that `aisec data list` shows")
    path.set_defaults(run=_one_line(_path))


def _one_line(verb: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        try:
            verb(arguments)
        except ValueError as misuse:
            print(f"aisec data: {misuse}", file=sys.stderr)
            return 2
        except (OSError, ImportError) as failed:
            print(f"aisec data: {failed}", file=sys.stderr)
            return 1
        return 0

    return run


def _list(arguments: argparse.Namespace) -> None:
    rows = [("name", "download", "fetched", "licence", "description")]
    for spec in known().values():
        state = "yes" if is_fetched(spec) else "no"
        rows.append((spec.name, f"{spec.size / 1e6:.0f} MB", state, spec.licence.partition(":")[0], spec.description))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)), row[4]]))


def _fetch(arguments: argparse.Namespace) -> None:
    specs = [spec_of(name) for name in arguments.names]  # a wrong name stops everything before the first download
    for spec in specs:
        print(fetch(spec, offline=True if arguments.offline else None, progress=_bar(spec.name)))


def _path(arguments: argparse.Namespace) -> None:
    print(checkpoint_path(arguments.name))


def _bar(name: str) -> Callable[[str, int, int], None]:
    def show(stage: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{name}: {stage} {100 * done // total:3d} %", end="\n" if done >= total else "", file=sys.stderr)

    return show

"""The import graph of an installed distribution: real texts, real edges, real classes, and nothing to download."""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gfmextract.text_graph import TextGraph

if TYPE_CHECKING:
    from gfmextract.pyg_ego import EgoGraphs

TEMPLATE = "this Python module is part of {}"
DEFINES = "It defines "
"""What stands between the docstring and the names of a node's text."""
WORDS, NAMES, NEIGHBOURS = 60, 20, 4
"""Most words of a docstring and names of a module that its text keeps, and neighbours that a summary tells of."""
TESTS = {"test", "tests", "testing", "conftest"}


def module_graph(distribution: str, encode: Callable[[list[str]], Tensor], *, least: int = 8) -> TextGraph:
    """The modules of an installed distribution as a text-attributed graph; read from source, never imported.

    Nodes are modules below a top-level subpackage, by name. A text is the first paragraph of the docstring and the
    public names, in words, without the module's own path. An edge is an import in either direction, wherever it stands
    in the module. A class is a public top-level subpackage. Tests and modules with nothing to tell are left out.

    Args:
        distribution: name of an installed distribution, as `pip list` gives it.
        encode: [n] texts to [n, F] features, such as `TextTower.encode`.
        least: modules that a subpackage must have to be a class.

    Raises:
        ValueError: for a distribution that is not installed, is linked to its source (editable), or does not have two
            such classes or no import between them.

    >>> graph = module_graph("hypothesis", lambda texts: torch.zeros(len(texts), 1))
    >>> graph.classes[-1], graph.prompts[-1]
    ('strategies', 'this Python module is part of strategies')

    Source: our own choice of a real graph.
    """
    sources = _sources(distribution)
    trees = {name: tree for name, path in sources.items() if (tree := _parsed(path)) is not None}
    texts = {name: text for name, tree in trees.items() if (text := _text(tree))}
    count = Counter(name.split(".")[1] for name in texts)
    kept = sorted(part for part, modules in count.items() if modules >= least and not part.startswith("_"))
    if len(kept) < 2:
        raise ValueError(
            f"distribution {distribution!r} has {len(kept)} subpackages of {least} modules: two are needed, lower least"
        )
    nodes = sorted(name for name in texts if name.split(".")[1] in kept)
    place = {name: number for number, name in enumerate(nodes)}
    edges = [
        (place[name], place[found])
        for name in nodes
        for found in _imports(name, trees[name], sources)
        if found in place and found != name
    ]
    told = [texts[name] for name in nodes]
    return TextGraph(
        name=distribution,
        x=encode(told),
        edge_index=torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T,
        texts=told,
        y=torch.tensor([kept.index(name.split(".")[1]) for name in nodes]),
        classes=tuple(_words(part) for part in kept),
        template=TEMPLATE,
    )


def module_summaries(graph: TextGraph, egos: EgoGraphs) -> list[str]:
    """What an ego graph of modules is about: the root's docstring, and what up to four of its neighbours define.

    No class is told. It stands where GraphCLIP has a summary written by a language model.

    Args:
        graph: as `module_graph` gives it.
        egos: G ego graphs of it.

    Returns:
        [G] texts.

    Source: our own choice.
    """
    told = []
    start, nodes = egos.start.tolist(), egos.nodes.tolist()
    for begin, end in pairwise(start):
        parts = [graph.texts[node].partition(DEFINES) for node in nodes[begin:end][: NEIGHBOURS + 1]]
        docstring, _, names = parts[0]
        beside = [other for _, _, other in parts[1:] if other]
        told.append(" ".join([docstring or names, *(["Beside it:", *beside] if beside else [])]).strip())
    return told


def _sources(name: str) -> dict[str, Path]:
    """Source files of the largest import package of a distribution by module name; `__init__` is the package."""
    try:
        found = distribution(name)
    except (PackageNotFoundError, ValueError):
        raise ValueError(f"distribution {name!r} is not installed: give a name that `pip list` shows") from None
    files = [file for file in found.files or [] if file.suffix == ".py" and len(file.parts) > 2]
    files = [file for file in files if all(part.isidentifier() for part in file.with_suffix("").parts)]
    if not files:
        raise ValueError(f"distribution {name!r} has no subpackages of its own: is it linked to its source (editable)?")
    largest = Counter(file.parts[0] for file in files).most_common(1)[0][0]
    named = {}
    for file in files:
        parts = file.with_suffix("").parts
        if parts[0] == largest and not TESTS & set(parts) and not parts[-1].startswith("test_"):
            module = parts[:-1] if parts[-1] == "__init__" else parts
            named[".".join(module), parts[-1] == "__init__"] = Path(str(file.locate()))
    return {module: named[module, package] for module, package in sorted(named)}


def _parsed(path: Path) -> ast.Module | None:
    """None for what is no Python of this version, such as a template."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strings with a stray backslash
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            return None


def _text(tree: ast.Module) -> str:
    """First paragraph of the docstring, then the public names, in words; empty when there is neither."""
    docstring = (ast.get_docstring(tree) or "").strip().split("\n\n")[0]
    named = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    names = [node.name for node in tree.body if isinstance(node, named) and not node.name.startswith("_")]
    words = " ".join(docstring.split()[:WORDS])
    return f"{words} {DEFINES + ', '.join(map(_words, names[:NAMES])) if names else ''}".strip()


def _imports(name: str, tree: ast.Module, sources: dict[str, Path]) -> Iterator[str]:
    """Modules of the same distribution that a module imports; `from a import b` is `a.b` where that is a module."""
    package = name.split(".") if sources[name].name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name in sources)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for each in node.names:
                inner = f"{base}.{each.name}"
                yield inner if inner in sources else base


def _words(name: str) -> str:
    """`LinearModel` and `linear_model` as words.

    >>> _words("linear_model"), _words("LinearModelCV")
    ('linear model', 'linear model cv')
    """
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)).lower()

"""Text-attributed graphs in files: a dictionary of tensors and texts that torch reads without running code."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from aisec_common.files import write_atomic

from gfmextract.text_graph import TextGraph

NEEDED = {"x", "edge_index", "texts", "y", "classes"}


def save_graph(graph: TextGraph, file: Path) -> None:
    """Writes a graph to `file`, whole or not at all.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "pair.pt"
    >>> graph = TextGraph(
    ...     name="pair", x=torch.eye(2), edge_index=torch.tensor([[0], [1]]), texts=("a", "b"),
    ...     y=torch.tensor([0, 1]), classes=("first", "second"),
    ... )
    >>> save_graph(graph, file)
    >>> load_graph(file).texts
    ['a', 'b']
    """
    content = {
        "name": graph.name,
        "x": graph.x,
        "edge_index": graph.edge_index,
        "texts": list(graph.texts),
        "y": graph.y,
        "classes": list(graph.classes),
        "template": graph.template,
    }
    written = io.BytesIO()
    torch.save(content, written)
    write_atomic(file, written.getvalue())


def load_graph(file: Path) -> TextGraph:
    """Reads what `save_graph` wrote, or a dictionary that someone saved with the same keys.

    Args:
        file: holds `x`, `edge_index`, `texts`, `y`, `classes`, and, if they are wanted, `name` and `template`.

    Raises:
        ValueError: for a file that is not there, holds something else, or holds a graph that is not valid.
    """
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torn, foreign, or with code in it
        raise ValueError(f"{file}: holds no tensors and texts alone ({type(error).__name__})") from None
    if not isinstance(content, dict) or (absent := NEEDED - set(content)):
        lacking = sorted(absent if isinstance(content, dict) else NEEDED)
        raise ValueError(f"{file}: lacks {', '.join(lacking)}; save a dictionary with them")
    if odd := set(content) - NEEDED - {"name", "template"}:
        raise ValueError(f"{file}: has the unknown key {min(odd)}")
    try:
        return TextGraph(**{"name": file.stem, **content})
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None

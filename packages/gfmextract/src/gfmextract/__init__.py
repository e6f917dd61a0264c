"""gfmextract: how much of a graph foundation model leaks through the embeddings it serves, and what defences cost."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gfmextract import defenses, scenarios
    from gfmextract.extraction import EmbeddingRegression
    from gfmextract.import_graph import module_graph
    from gfmextract.leakage import leakage_report
    from gfmextract.pyg_ego import ego_graphs
    from gfmextract.service import EmbeddingService
    from gfmextract.text_graph import TextGraph

__all__ = [
    "EmbeddingRegression",
    "EmbeddingService",
    "TextGraph",
    "__version__",
    "defenses",
    "ego_graphs",
    "leakage_report",
    "module_graph",
    "scenarios",
]
__version__ = version("aisec-gfmextract")

_LAZY = {  # torch and torch_geometric load with them
    "EmbeddingRegression": "gfmextract.extraction",
    "EmbeddingService": "gfmextract.service",
    "TextGraph": "gfmextract.text_graph",
    "defenses": "gfmextract.defenses",
    "ego_graphs": "gfmextract.pyg_ego",
    "leakage_report": "gfmextract.leakage",
    "module_graph": "gfmextract.import_graph",
    "scenarios": "gfmextract.scenarios",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module = import_module(_LAZY[name])
        return getattr(module, name, module)  # a name may be the module's own
    raise AttributeError(f"module 'gfmextract' has no attribute {name!r}")

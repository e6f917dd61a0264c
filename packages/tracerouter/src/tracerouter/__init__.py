"""tracerouter: the path that an unsafe concept takes through a network, found and attenuated at inference."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tracerouter.pairs import Pair, pairs_from_jsonl

if TYPE_CHECKING:
    from tracerouter.hf_router import TraceRouter
    from tracerouter.path import Trace
    from tracerouter.sites import find_sites
    from tracerouter.suppression import Gate, Suppression

__all__ = ["Gate", "Pair", "Suppression", "Trace", "TraceRouter", "__version__", "find_sites", "pairs_from_jsonl"]
__version__ = version("aisec-tracerouter")

_LAZY = {  # torch and transformers load with them
    "Gate": "tracerouter.suppression",
    "Suppression": "tracerouter.suppression",
    "Trace": "tracerouter.path",
    "TraceRouter": "tracerouter.hf_router",
    "find_sites": "tracerouter.sites",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'tracerouter' has no attribute {name!r}")

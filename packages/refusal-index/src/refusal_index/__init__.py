"""Refusal Index: how well a language model's own refusals track what it does not know (arXiv 2510.01782).

The adapters `HFGenerate`, `OpenAIGenerate` and `VLLMGenerate` are imported when first asked for.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

from refusal_index.estimate import RefusalIndex, from_rates, refusal_index
from refusal_index.iso_curve import iso_curve
from refusal_index.readers import read_results
from refusal_index.report import RefusalReport, compare
from refusal_index.runner import TwoPassRunner

__all__ = [
    "RefusalIndex",
    "RefusalReport",
    "TwoPassRunner",
    "__version__",
    "compare",
    "from_rates",
    "iso_curve",
    "read_results",
    "refusal_index",
]
__version__ = version("aisec-refusal-index")

_ADAPTERS = {"HFGenerate": "hf_generate", "OpenAIGenerate": "openai_generate", "VLLMGenerate": "vllm_generate"}


def __getattr__(name: str) -> Any:
    if name in _ADAPTERS:
        return getattr(import_module(f"refusal_index.{_ADAPTERS[name]}"), name)
    raise AttributeError(f"module 'refusal_index' has no attribute {name!r}")

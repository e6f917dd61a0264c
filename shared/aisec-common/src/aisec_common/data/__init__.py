"""Real checkpoints and data: pinned by sha256, fetched once on request, found by name and used offline afterwards.

Nothing here is fetched unless asked for (`aisec data fetch NAME`, or `fetch`); importing it loads neither numpy nor
torch and touches no network.
"""

from aisec_common.data.fetching import FetchError, fetch
from aisec_common.data.registry import checkpoint_path, data_folder, is_fetched, known, model_path
from aisec_common.data.spec import DataSpec

__all__ = [
    "DataSpec",
    "FetchError",
    "checkpoint_path",
    "data_folder",
    "fetch",
    "is_fetched",
    "known",
    "model_path",
]

"""Data and evaluation utilities of the aisec packages; import what you need from the submodules.

`import aisec_common` loads neither numpy nor torch, so that `aisec list` and `aisec info` stay instant.
"""

from importlib.metadata import version

from aisec_common.study import Claim, Extra, Outcome, Scale, Study, TrialLog

__all__ = ["Claim", "Extra", "Outcome", "Scale", "Study", "TrialLog"]
__version__ = version("aisec-common")

"""interference-nn: classifiers behind blended backgrounds, and a ladder of attacks that says what they withstand."""

from importlib.metadata import version

# not lazily: `fit` and `ladder` are names of modules too, which would take their place when they load later
from interference_nn.backgrounds import Backgrounds, ProceduralBackgrounds, noise_backgrounds
from interference_nn.fit import fit
from interference_nn.ladder import ladder
from interference_nn.net import InterferenceNet

__all__ = [
    "Backgrounds",
    "InterferenceNet",
    "ProceduralBackgrounds",
    "__version__",
    "fit",
    "ladder",
    "noise_backgrounds",
]
__version__ = version("aisec-interference-nn")

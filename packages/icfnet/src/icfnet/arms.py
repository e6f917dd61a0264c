"""The models set beside ICFNet: the same encoders with one switch turned, and peers from scikit-survival."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aisec_common.seeding import numpy_rng

if TYPE_CHECKING:
    from icfnet.cohort import Cohort
    from icfnet.sksurv_baselines import CoxnetBaseline, ForestBaseline
    from icfnet.sksurv_estimator import ICFNetSurvival

Show = Callable[[str, int, int], None]

SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "icfnet": {},
    "icfnet-nll": {"loss": "nll"},
    "omic-only": {"modalities": ("genes",)},
    "wsi-only": {"modalities": ("wsi",)},
    "clinical-only": {"modalities": ("text",)},
    "concat": {"fusion": "late"},
    "motcat": {
        "modalities": ("wsi", "genes"),
        "loss": "nll",
        "rod": False,
        "fusion": "concat",
        "aux_heads": "none",
    },
    "no-rod": {"rod": False},
    "no-ot": {"ot": False},
    "no-unification": {"fusion": "concat"},
}
"""Arms in the encoders of ICFNet: arguments of `ICFNetSurvival` that differ from those of the model beside it.

The method, its standard loss, one modality each, late fusion by concatenation, MOTCat-like (slides and genes,
transport, standard loss), and the method without decomposition, with softmax co-attention, and with concatenation for
unification.
"""

PEERS = ("coxnet", "rsf")
ARMS = (*SWITCHES, *PEERS)


def make_arm(arm: str, like: object, *, facts: Sequence[str] = ()) -> ICFNetSurvival | CoxnetBaseline | ForestBaseline:
    """An unfitted model of one arm, in all else like another.

    Args:
        arm: of `ARMS`.
        like: the ICFNetSurvival whose settings hold where the arm does not turn them.
        facts: for the peers, columns of `Cohort.groups` that the sentences tell of.

    Raises:
        ValueError: for an unknown arm.
        TypeError: where `like` is no ICFNetSurvival.

    >>> from icfnet import ICFNetSurvival
    >>> make_arm("omic-only", ICFNetSurvival(epochs=3)).get_params()["modalities"]
    ('genes',)
    """
    from sklearn.base import clone

    from icfnet.sksurv_baselines import CoxnetBaseline, ForestBaseline
    from icfnet.sksurv_estimator import ICFNetSurvival

    if arm not in ARMS:
        raise ValueError(f"arm must be one of {', '.join(ARMS)}, not {arm!r}")
    if not isinstance(like, ICFNetSurvival):
        raise TypeError(f"like must be an ICFNetSurvival, not {type(like).__name__}")
    if arm in PEERS:
        peer = CoxnetBaseline if arm == "coxnet" else ForestBaseline
        return peer(modalities=like.modalities, facts=facts, seed=like.seed)
    made: ICFNetSurvival = clone(like).set_params(out=None, **SWITCHES[arm])
    return made


def fit_with_curve(model: ICFNetSurvival, train: Cohort, test: Cohort, *, show: Show | None = None) -> list[float]:
    """Fits a model and tells the C-index on `test` after every epoch.

    The authors report the best epoch on the very patients they test on; here that number stands beside the last
    epoch's, so that a reader sees what it is worth. Training itself never sees `test`.

    Args:
        model: fitted in place.
        train: the patients to fit.
        test: the patients to score.
        show: called as `show(what, done, total)`.

    Returns:
        One C-index an epoch.
    """
    curve: list[float] = []

    def after(what: str, done: int, total: int) -> None:
        model.network_.eval()
        curve.append(model.score(test))
        model.network_.train()
        if show is not None:
            show(what, done, total)

    model.fit(train, show=after)
    return curve


def permuted(cohort: Cohort, seed: int) -> Cohort:
    """The same patients with their outcomes dealt out anew, time and event together: nothing is left to learn."""
    order = numpy_rng(seed, "icfnet", "permuted labels").permutation(len(cohort))
    return cohort.with_outcome(cohort.time[order], cohort.event[order])

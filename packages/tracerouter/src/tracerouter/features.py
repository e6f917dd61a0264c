"""Which features carry the concept at the onset layer, and which units of the residual stream they write to."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from tracerouter.activity import Activity

K_MIN, K_MAX = 2, 64  # an elbow is never taken lower or higher (our choice)


def delta_wfs(plus: Activity, minus: Activity) -> Tensor:
    """How much more a feature says on sensitive prompts than on matched ones.

    ΔWFS(m) = WFS_{S+}(m) - WFS_{S-}(m)

    Args:
        plus, minus: statistics of the same units over the tokens of S+ and S-.

    Returns:
        [m] float64; swapping the two sets changes its sign.

    Raises:
        ValueError: when the two count different units, or one has seen no token.

    Source: arXiv 2601.21900, eq. 4.
    """
    if (plus.units, plus.sign) != (minus.units, minus.sign):
        raise ValueError(
            f"minus counts {minus.units} units with sign {minus.sign!r}, plus {plus.units} with {plus.sign!r}"
        )
    return plus.wfs - minus.wfs.to(plus.wfs.device)


def elbow(scores: Tensor, k_min: int = K_MIN, k_max: int = K_MAX) -> int:
    """How many of the top units to take: the rank at which the sorted curve is farthest from its chord.

    With scores s_1 >= ... >= s_n the chord joins (1, s_1) and (n, s_n). The distance to it is proportional to the
    vertical one, so that scaling the scores changes nothing.

    Args:
        scores: [n] in any order.
        k_min, k_max: the rank is clamped to [k_min, k_max], and to n.

    Returns:
        A number of units; `k_min` with a warning where the curve equals its chord.

    Raises:
        ValueError: for no scores, scores that are not finite, or bounds out of order.

    Source: arXiv 2601.21900, fig. 11 (that an elbow is used); rule and bounds are ours.

    >>> elbow(torch.tensor([9.0, 7.0, 5.0, 1.0, 0.9, 0.8, 0.7]))
    4
    """
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"scores must be [n] with n >= 1, got {list(scores.shape)}")
    if not torch.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity: check the activations they come from")
    if not 1 <= k_min <= k_max:
        raise ValueError(f"k_min must be in 1..k_max, got k_min {k_min} and k_max {k_max}")
    curve = scores.detach().cpu().double().sort(descending=True).values
    most = min(k_max, len(curve))
    share = torch.linspace(0, 1, len(curve), dtype=torch.float64)
    height = (curve[0] - curve[-1]).item()
    # relative to its height, a straight curve must read straight whatever the rounding of its values
    distance = (curve - curve[0] + share * height).abs() / (height or 1.0)
    slack = 1e-9 + 1e-15 * curve.abs().max().item() / (height or 1.0)
    if height == 0 or distance.max() <= slack:
        warnings.warn(f"scores have no elbow: their sorted curve is straight, taking k_min = {k_min}", stacklevel=2)
        return min(k_min, most)
    first = int((distance >= distance.max() - slack).nonzero()[0])  # ties: the shorter list
    return min(max(first + 1, k_min), most)


def top_units(scores: Tensor, k: int | None = None) -> Tensor:
    """The `k` units of highest score, best first; a unit whose score is not above 0 is never taken.

    Args:
        scores: [m].
        k: how many; default: the `elbow`.

    Returns:
        Indices, int64 on the CPU, at most `k` of them.

    Raises:
        ValueError: for a `k` outside 1..m, or see `elbow`.

    >>> top_units(torch.tensor([0.0, 3.0, 0.0, 5.0]), k=3).tolist()
    [3, 1]
    """
    if k is None:
        k = elbow(scores)
    if not 1 <= k <= len(scores):
        raise ValueError(f"k must be in 1..{len(scores)}, the number of units, got {k}")
    values = scores.detach().cpu()
    best = values.argsort(descending=True, stable=True)[:k]
    return best[values[best] > 0]


def back_projection(decoder: Tensor, selected: Tensor) -> Tensor:
    """What the selected features write into the residual stream together: Z_proj = W_dec 1_sel.

    The sum is not weighted by ΔWFS: weights change which units stand out.

    Args:
        decoder: W_dec [d, m], one column a feature.
        selected: [k] indices of features.

    Returns:
        [d].

    Raises:
        ValueError: for no features, or one that the decoder does not have.

    Source: arXiv 2601.21900, back-projection.
    """
    width = decoder.shape[-1]
    if selected.ndim != 1 or not len(selected) or not 0 <= int(selected.min()) <= int(selected.max()) < width:
        raise ValueError(f"selected must be indices in 0..{width - 1}, at least one, got {selected.tolist()[:8]}")
    return decoder[:, selected.to(decoder.device)].sum(1)


def source_units(projection: Tensor, k: int | None = None) -> Tensor:
    """S_src: the coordinates where the back-projection is largest in absolute value.

    Args:
        projection: Z_proj [d].
        k: K_s, how many; default: the `elbow` of |Z_proj|.

    Returns:
        Coordinates, strongest first, int64 on the CPU.

    Raises:
        ValueError: see `top_units`.
    """
    return top_units(projection.abs(), k)

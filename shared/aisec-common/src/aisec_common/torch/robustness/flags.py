"""Signs that a model hides its gradients instead of being robust: one list, F1 to F6, for every report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

from aisec_common.torch.robustness.rungs import Rung

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Right = NDArray[np.bool_]

MORE = 0.01  # share of the images that one attack must break beyond another
P = 0.01  # of the paired test
GREY = 0.5  # the eps at which one grey image is in reach of all
ABOVE_CHANCE = 0.02
COSINE = 0.2
ZERO_GRADIENTS = 0.05
LONG = 100  # steps of the PGD that APGD must not fall behind


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One raised flag: its code F1 to F6, what was seen in one sentence, and the numbers behind it."""

    code: str
    text: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What flags are judged from; every array holds the same images in the same order, probes only the first ones.

    Args:
        rungs: of the report.
        eps: of the report.
        right: right in all passes [n], by (rung, eps); eps 0 of `"clean"`.
        probes: rungs run on the first images for the flags alone.
        grid: (eps, right) of one attack along eps x {0, .5, 1, 2, 4}, and at 0.5.
        chance: accuracy of the best constant prediction on the probed images.
        cosine: between two gradient estimates, mean over images; None for a deterministic model.
        zero_gradients: share of the images whose input gradient is exactly zero.
    """

    rungs: Sequence[Rung]
    eps: Sequence[float]
    right: Mapping[tuple[str, float], Right]
    probes: Sequence[Rung]
    grid: Sequence[tuple[float, Right]]
    chance: float
    cosine: float | None
    zero_gradients: float


def beats(a_right: Right, b_right: Right) -> bool:
    """Whether attack A breaks more than 1 pp more of the images than B, exact McNemar p < .01.

    Of the images that only one attack breaks, A's share is tested against one half.

    Args:
        a_right: what A left right [n].
        b_right: what B left right [n], the same images.

    >>> import numpy as np
    >>> few = np.arange(300) >= 8
    >>> beats(few, np.ones(300, bool)), beats(few, few)
    (True, False)
    """
    from scipy.stats import binomtest

    if a_right.shape != b_right.shape:
        raise ValueError(f"a_right and b_right must be of the same images, not {a_right.shape} and {b_right.shape}")
    a_only, b_only = int((~a_right & b_right).sum()), int((a_right & ~b_right).sum())
    if a_only - b_only <= MORE * len(a_right):
        return False
    return bool(binomtest(a_only, a_only + b_only).pvalue < P)


def white_box(rungs: Sequence[Rung]) -> list[Rung]:
    """The rungs that nothing weaker may beat: the adaptive ones, or the white-box ones where none is adaptive."""
    return [r for r in rungs if r.kind == "adaptive"] or [r for r in rungs if r.kind == "white_box"]


def raised(seen: Seen) -> tuple[Flag, ...]:
    """The flags that `seen` raises, in the order of their codes."""
    return (
        *_weaker_beats_white_box(seen),
        *_not_falling_with_eps(seen),
        *_shorter_beats_longer(seen),
        *_pgd_beats_apgd(seen),
        *_gradients(seen),
    )


def _weaker_beats_white_box(seen: Seen) -> Iterator[Flag]:
    strong = white_box(seen.rungs)
    weak = [rung for rung in seen.rungs if rung.kind in ("transfer", "gradient_free", "noise")]
    for eps, rung in product(seen.eps, weak if strong else []):
        if beats(a := seen.right[rung.name, eps], b := _union(seen, strong, eps)):
            yield _flag("F1", f"{rung.name} beats the white box at eps {eps:.4g}", rung.name, a, "white box", b)


def _not_falling_with_eps(seen: Seen) -> Iterator[Flag]:
    runs = {"PGD": list(seen.grid)}
    runs |= {r.name: [(eps, seen.right[r.name, eps]) for eps in sorted(seen.eps)] for r in white_box(seen.rungs)}
    for name, along in runs.items():
        for (low, a), (high, b) in combinations(along, 2):
            if low < high and beats(a, b):
                yield _flag("F2", f"accuracy under {name} rises from eps {low:.4g} to {high:.4g}", low, a, high, b)
                break
    for eps, right in seen.grid:
        if eps == GREY and right.mean() > seen.chance + ABOVE_CHANCE:
            text = f"accuracy is {right.mean():.3f} at eps {GREY}, where one grey image is in reach of all"
            yield Flag(code="F2", text=text, evidence={"accuracy": float(right.mean()), "chance": seen.chance})
            break


def _shorter_beats_longer(seen: Seen) -> Iterator[Flag]:
    both = [*seen.rungs, *seen.probes]
    for eps, (first, second) in product(seen.eps, combinations(both, 2)):
        short, long = sorted((first, second), key=lambda rung: (rung.steps, rung.draws))
        alike = first.family == second.family != "" and dict(first.settings) == dict(second.settings)
        one_grows = (short.steps < long.steps) != (short.draws < long.draws) and short.draws <= long.draws
        if alike and one_grows and (short.name, eps) in seen.right and (long.name, eps) in seen.right:
            a, b = _paired(seen.right[short.name, eps], seen.right[long.name, eps])
            if beats(a, b):
                text = f"{short.name} beats the longer {long.name} at eps {eps:.4g}"
                yield _flag("F3", text, short.name, a, long.name, b)


def _pgd_beats_apgd(seen: Seen) -> Iterator[Flag]:
    apgd = [rung for rung in seen.rungs if rung.family == "apgd"]
    pgd = [rung for rung in (*seen.rungs, *seen.probes) if rung.family == "pgd" and rung.steps >= LONG]
    for eps, rung in product(seen.eps, pgd if apgd else []):
        if (rung.name, eps) in seen.right:
            a, b = _paired(seen.right[rung.name, eps], _union(seen, apgd, eps))
            if beats(a, b):
                yield _flag("F4", f"{rung.name} beats APGD at eps {eps:.4g}", rung.name, a, "APGD", b)
                return


def _gradients(seen: Seen) -> Iterator[Flag]:
    if seen.cosine is not None and not seen.cosine >= COSINE:
        text = f"two estimates of a gradient have a mean cosine of {seen.cosine:.2f}"
        yield Flag(code="F5", text=text, evidence={"cosine": seen.cosine})
    if seen.zero_gradients > ZERO_GRADIENTS:
        text = f"the input gradient is exactly zero on {seen.zero_gradients:.0%} of the images that are right"
        yield Flag(code="F6", text=text, evidence={"zero_gradients": seen.zero_gradients})


def _union(seen: Seen, rungs: Sequence[Rung], eps: float) -> Right:
    """Right under every one of `rungs`."""
    import numpy as np

    together: Right = np.logical_and.reduce([seen.right[rung.name, eps] for rung in rungs])
    return together


def _paired(a: Right, b: Right) -> tuple[Right, Right]:
    """Both on the images that both have; probes have the first ones."""
    n = min(len(a), len(b))
    return a[:n], b[:n]


def _flag(code: str, text: str, a: str | float, a_right: Right, b: str | float, b_right: Right) -> Flag:
    accuracies = {str(a): float(a_right.mean()), str(b): float(b_right.mean())}
    told = ", ".join(f"{value:.3f} under {name}" for name, value in accuracies.items())
    return Flag(code=code, text=f"{text} (accuracy {told})", evidence=accuracies)

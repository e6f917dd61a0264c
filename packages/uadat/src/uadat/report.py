"""The robustness report of a classifier: per-sample worst case over attacks, and signs of masked gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from aisec_common.torch.linf_pgd import Model, evaluating
from aisec_common.torch.model_hash import model_hash
from aisec_common.torch.robustness import RobustnessReport, Rung, robustness_report, standard_rungs
from torch import Tensor, nn

PASSES = 10  # of a random model

Batches = Iterable[tuple[Tensor, Tensor]]


def robust_report(
    model: Model,
    data: Batches | tuple[Tensor, Tensor],
    eps: float | Sequence[float],
    *,
    attacks: Literal["quick", "standard", "full"] = "standard",
    seeds: int = 1,
    surrogate: Model | None = None,
    extra_rungs: Sequence[Rung] = (),
    folder: str | Path | None = None,
    batch_size: int = 256,
    progress: Callable[[str, int, int], None] | None = None,
    about: Mapping[str, Any] | None = None,
) -> RobustnessReport:
    """Attacks a classifier from naive to strong and says, image by image, what survived everything.

    The headline is the worst case over all rungs: an image counts as right only if it is right under every attack.
    A raised flag (F1 to F6 of `aisec_common.torch.robustness`) makes the verdict undecided, because gradients that a
    model hides look like robustness.

    Args:
        model: images (B, C, H, W) in [0, 1] -> logits (B, K); modules are put into eval mode meanwhile. One whose
            attribute `random` is true gets attacks that average over its draws (of `once(images)`, a single one, where
            it has that), and an image is right only if it is right in ten fresh passes.
        data: a loader of (images, labels), or the two tensors.
        eps: radius of the l_inf ball, or several.
        attacks: "quick" PGD-20 and APGD; "standard" also PGD-100, CW and Square; "full" those of AutoAttack.
        seeds: how often every attack is run from new starts; the worst counts. For a random model 1: one pass does not
            tell which images a run broke, and its PGD has restarts.
        surrogate: a model whose adversarial images are tried on this one as well.
        extra_rungs: further attacks, each run once; `callable_attack("AutoAttack", "white_box", AutoAttack(...))` of
            `aisec_common.torch.robustness` makes one of the AutoAttack of its authors.
        folder: where every image's result is kept as it comes; the same call goes on from there.
        batch_size: images attacked at once.
        progress: called with what is attacked, how many images are done, and of how many.
        about: what else the report should say of the model.

    Returns:
        The report: `worst_case()`, `table()`, `flags`, `raise_if_masked()`, `compare({name: report})`, `save(path)`.

    Raises:
        ValueError: if images are not in [0, 1], labels out of range, eps or seeds not positive, there is no image, two
            rungs have one name, or seeds > 1 for a random model.

    >>> from uadat.digits import digits
    >>> from uadat.image_splits import as_tensors
    >>> from uadat.network import small_resnet
    >>> images, labels = as_tensors(digits(0).test, 20)
    >>> report = robust_report(small_resnet(10, seed=0), (images, labels), 0.1, attacks="quick")
    >>> bool(report.worst_case() <= report.accuracy("clean"))
    True

    Source: arXiv 2411.02871 evaluates with AutoAttack; the rungs and flags are our choice ([design], section 6).
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, not {seeds}")
    random = bool(getattr(model, "random", False))
    if random and seeds > 1:
        raise ValueError(f"seeds must be 1 for a random model, whose PGD has restarts of its own, not {seeds}")
    images, labels = stacked(data)
    told: dict[str, Any] = {"attacks": attacks, "seeds": seeds}
    if surrogate is not None:  # another one must not go on from this one's samples
        told["surrogate"] = model_hash(surrogate)[:12] if isinstance(surrogate, nn.Module) else "a function"
    standard = standard_rungs(attacks, random_model=random, surrogate=surrogate)
    return robustness_report(
        model,
        images,
        labels,
        eps=eps,
        rungs=[*(repeated(rung, seeds) for rung in standard), *extra_rungs],
        passes=PASSES if random else 1,
        batch_size=batch_size,
        folder=None if folder is None else Path(folder),
        progress=progress,
        about={**told, **(about or {})},
    )


def repeated(rung: Rung, times: int) -> Rung:
    """The same attack, run again from new starts on the images that are still right; a single run stays as it is.

    Args:
        rung: of a deterministic model.
        times: runs.

    >>> from aisec_common.torch.robustness import noise
    >>> repeated(noise(), 3).settings["runs"]
    3
    """
    if times == 1:
        return rung

    def attack(model: Model, images: Tensor, labels: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        found = rung.attack(model, images, labels, eps, generator).clone()
        for _ in range(times - 1):
            with torch.no_grad(), evaluating(model):
                left = model(found).argmax(1) == labels
            if not left.any():
                break
            found[left] = rung.attack(model, images[left], labels[left], eps, generator)
        return found

    return replace(rung, attack=attack, settings={**rung.settings, "runs": times})


def stacked(data: Batches | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Images (n, C, H, W) and labels (n,) of a loader, or the two tensors as they are.

    Raises:
        ValueError: if there is no image, or the batches are no pairs of tensors.
    """
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(each, Tensor) for each in data):
        return data  # type: ignore[return-value]  # the check above is what the type says
    try:
        batches = [(images, labels) for images, labels in data]
    except (TypeError, ValueError):
        raise ValueError("data must be (images, labels), or a loader that gives such pairs") from None
    if not batches:
        raise ValueError("data holds no image")
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])

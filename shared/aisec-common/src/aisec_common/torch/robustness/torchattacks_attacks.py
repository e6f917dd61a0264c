"""Rungs from torchattacks (APGD, FAB, Square, and AutoAttack made of them), and from an AutoAttack object.

torchattacks seeds torch's global generator, changes modes, prints, and keeps every model it ever saw in a list of its
own; here it gets a thin stand-in for the model, emptied afterwards, and a forked global generator.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
import torchattacks
from aisec_common.torch.linf_pgd import Model, evaluating, mean_logits
from aisec_common.torch.robustness.rungs import Attack, Kind, Rung, one_draw
from torch import Tensor, nn

TARGETS = 9  # wrong classes that the targeted attacks of AutoAttack try
AUTOATTACK_STEPS, AUTOATTACK_QUERIES, AUTOATTACK_DRAWS = 100, 5000, 20
Make = Callable[[nn.Module, float, int, int], Any]
"""From (model, eps, classes, seed) to an attack of torchattacks."""


def apgd(objective: Literal["ce", "dlr", "targeted"], steps: int = 100, *, draws: int = 1) -> Rung:
    """APGD on the cross-entropy, the DLR loss, or the targeted DLR loss towards up to 9 other classes.

    With `draws` > 1 (not the targeted one) it follows the log of the mean probability of so many passes of `one_draw`,
    all in one batch, and returns the images of highest loss; the `eot_iter` of torchattacks would average gradients of
    the logs, one pass at a time, and hand back the clean image where no step was misclassified.

    Source: Croce and Hein, ICML 2020; torchattacks.

    Raises:
        ValueError: for an unknown objective; in the attack, for fewer than 3 (dlr) or 4 (targeted) classes.

    >>> apgd("ce", 30).name
    'APGD-CE'
    """
    names = {"ce": "APGD-CE", "dlr": "APGD-DLR", "targeted": "APGD-T"}
    if objective not in names:
        raise ValueError(f"objective must be one of {', '.join(names)}, not {objective!r}")
    if objective == "targeted" and draws > 1:
        raise ValueError(
            "objective: targeted APGD has no draws; use 'ce' and 'dlr' for random models, as AutoAttack does"
        )
    return Rung(
        name=f"{'EOT-' if draws > 1 else ''}{names[objective]}",
        kind="adaptive" if draws > 1 else "white_box",
        attack=_contained(_apgd(objective, steps), draws=draws),
        steps=steps,
        draws=draws,
        family="apgd",
        settings={"objective": objective},
    )


def fab(steps: int = 100) -> Rung:
    """Targeted FAB: the smallest change towards each of up to 9 other classes; counts where it is below eps.

    Source: Croce and Hein, ICML 2020; torchattacks.

    >>> fab().family
    'fab'
    """
    return Rung(name="FAB-T", kind="white_box", attack=_contained(_fab(steps)), steps=steps, family="fab")


def square(queries: int = 5000) -> Rung:
    """Square: random search with `queries` predictions an image, no gradients.

    Source: Andriushchenko et al., ECCV 2020; torchattacks.

    >>> square(500).kind
    'gradient_free'
    """
    return Rung(
        name=f"Square-{queries}",
        kind="gradient_free",
        attack=_contained(_square(queries)),
        steps=queries,
        family="square",
    )


def autoattack(version: Literal["standard", "rand"] = "standard") -> Rung:
    """AutoAttack as one rung, each attack on what the ones before left right.

    `standard`: APGD-CE, APGD-T, FAB-T, Square 5000; `rand`: APGD-CE and APGD-DLR through 20 draws. At the published
    100 steps; torchattacks' own class of that name runs 10.

    Source: Croce and Hein, ICML 2020.

    >>> autoattack("rand").draws
    20
    """
    steps = AUTOATTACK_STEPS
    parts: dict[str, Sequence[Make]] = {
        "standard": (_apgd("ce", steps), _apgd("targeted", steps), _fab(steps), _square(AUTOATTACK_QUERIES)),
        "rand": (_apgd("ce", steps), _apgd("dlr", steps)),
    }
    if version not in parts:
        raise ValueError(f"version must be 'standard' or 'rand', not {version!r}")
    draws = AUTOATTACK_DRAWS if version == "rand" else 1
    return Rung(
        name=f"AutoAttack {version}",
        kind="adaptive" if version == "rand" else "white_box",
        attack=_contained(*parts[version], draws=draws),
        steps=steps,
        draws=draws,
        family="apgd",
    )


def callable_attack(name: str, kind: Kind, attack: Any) -> Rung:
    """A rung from an object with `run_standard_evaluation(images, labels, bs=)`, as AutoAttack of its authors has.

    The object holds its own model, which must be the one reported on, and the epsilon it was made for.

    Raises:
        TypeError: if it has no such method.
        ValueError: in the attack, if its `epsilon` is not that of the report.

    >>> callable_attack("mine", "white_box", object())
    Traceback (most recent call last):
    TypeError: attack must have run_standard_evaluation(images, labels, bs=...), but object has not
    """
    if not callable(getattr(attack, "run_standard_evaluation", None)):
        raise TypeError(
            f"attack must have run_standard_evaluation(images, labels, bs=...), but {type(attack).__name__} has not"
        )

    def run(model: Model, images: Tensor, labels: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        if abs(getattr(attack, "epsilon", eps) - eps) > 1e-9:
            raise ValueError(f"eps: {name} was made for {attack.epsilon}, not {eps}; make one for each eps")
        attack.seed = _seed(generator)
        with _quiet(images), evaluating(getattr(attack, "model", None)):
            found: Tensor = attack.run_standard_evaluation(images, labels, bs=len(images))
        return found.detach().to(images)

    return Rung(name=name, kind=kind, attack=run, family="apgd" if kind in ("white_box", "adaptive") else "")


class _StandIn(nn.Module):
    """The model for torchattacks: averages draws, has a parameter to tell its device, and no modes of its own."""

    def __init__(self, model: Model, draws: int, device: torch.device) -> None:
        super().__init__()
        self.device_mark = nn.Parameter(torch.zeros(0, device=device), requires_grad=False)
        self.run: Model | None = lambda images: mean_logits(model, images, draws)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        assert self.run is not None
        return self.run(images)


def _contained(*makes: Make, draws: int = 1) -> Attack:
    def run(model: Model, images: Tensor, labels: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        stand_in = _StandIn(one_draw(model) if draws > 1 else model, draws, images.device)
        ended, left = images.clone(), torch.arange(len(images), device=images.device)
        try:
            with evaluating(model), _quiet(images):
                with torch.no_grad():
                    classes = stand_in(images[:1]).shape[1]
                for make in makes:
                    attack = make(stand_in, eps, classes, _seed(generator))
                    if draws > 1:  # called, it hands back clean images where the mean of the draws stayed right
                        found = attack.perturb(images[left], labels[left], best_loss=True)[1].detach()
                    else:
                        found = attack(images[left], labels[left]).detach()
                    ended[left] = found
                    if len(makes) > 1:
                        with torch.no_grad():
                            left = left[stand_in(found).argmax(1) == labels[left]]
                    if not len(left):
                        break
        finally:
            stand_in.run = None
        return ended

    return run


def _apgd(objective: str, steps: int) -> Make:
    def make(model: nn.Module, eps: float, classes: int, seed: int) -> Any:
        if objective != "targeted":
            _need(classes, 3 if objective == "dlr" else 2, f"APGD on {objective}")
            return torchattacks.APGD(model, eps=eps, steps=steps, loss=objective, seed=seed)
        _need(classes, 4, "targeted APGD")
        return torchattacks.APGDT(model, eps=eps, steps=steps, n_classes=min(classes, TARGETS + 1), seed=seed)

    return make


def _fab(steps: int) -> Make:
    return lambda model, eps, classes, seed: torchattacks.FAB(
        model, eps=eps, steps=steps, n_classes=min(classes, TARGETS + 1), multi_targeted=True, seed=seed
    )


def _square(queries: int) -> Make:
    return lambda model, eps, classes, seed: torchattacks.Square(model, eps=eps, n_queries=queries, seed=seed)


def _need(classes: int, least: int, what: str) -> None:
    if classes < least:
        raise ValueError(f"rungs: {what} needs a model of {least} classes or more, not {classes}; use apgd('ce')")


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**31, (1,), generator=generator, device=generator.device))


@contextlib.contextmanager
def _quiet(images: Tensor) -> Iterator[None]:
    """No prints, and the global generators as they were."""
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), contextlib.redirect_stdout(io.StringIO()):
        yield

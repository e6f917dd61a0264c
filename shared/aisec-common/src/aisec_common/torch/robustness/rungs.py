"""The rungs of a robustness report: attacks from naive to adaptive, each a name, a kind and a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from aisec_common.torch.linf_pgd import Loss, Model, evaluating, linf_pgd, mean_logits
from torch import Tensor

Kind = Literal["white_box", "adaptive", "transfer", "gradient_free", "noise"]
Attack = Callable[[Model, Tensor, Tensor, float, torch.Generator], Tensor]
"""From (model, images, labels, eps, generator) to images in the eps ball and in [0, 1]."""
Scale = Literal["quick", "standard", "full"]


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One attack of a report.

    Give it another name with `dataclasses.replace(rung, name="R4")`.

    Args:
        name: how tables call it.
        kind: what the attacker has. `"adaptive"`: the gradient of the whole defence, its randomness averaged;
            `"white_box"`: any other use of the gradient; the others see no gradient of the defence. Where a report has
            adaptive rungs, only these are the white box that nothing weaker may beat (flag F1).
        attack: from (model, images, labels, eps, generator) to images; it gets only images that were right and eps > 0.
        steps: gradient steps, or queries.
        draws: forward passes averaged in each step.
        family: rungs of one family differ in strength alone; "pgd" and "apgd" have a meaning to the flags.
        settings: all else that decides the images, so that a report does not resume from another attack's samples.

    Raises:
        ValueError: for an empty name or an unknown kind.
    """

    name: str
    kind: Kind
    attack: Attack = field(repr=False, compare=False)
    steps: int = 0
    draws: int = 1
    family: str = ""
    settings: Mapping[str, str | int | float | None] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.name or self.name in ("clean", "worst case"):
            raise ValueError(f"name must say which attack it is and not be 'clean' or 'worst case', got {self.name!r}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, not {self.kind!r}")

    def described(self) -> dict[str, str | int | float | None]:
        """What a record keeps of a rung."""
        told: dict[str, str | int | float | None] = {"name": self.name, "kind": self.kind, "family": self.family}
        return {**told, "steps": self.steps, "draws": self.draws, **self.settings}


def one_draw(model: Model) -> Model:
    """The pass that an attack averages itself: `model.once` of a random model that has it, else the model.

    A model that already averages M draws in a call would otherwise cost M times E passes a step.
    """
    once: Model = getattr(model, "once", model)
    return once


def pgd(
    steps: int,
    *,
    restarts: int = 1,
    draws: int = 1,
    step_size: float = 0.25,
    loss: Literal["ce", "cw"] | Loss = "ce",
    target: Literal["random", "least_likely"] | None = None,
) -> Rung:
    """PGD, or EOT-PGD through the mean probability of `draws` passes of `one_draw`; see `linf_pgd`.

    Images already broken are left alone where the model is not random (it says so, or the report found out): one
    unlucky draw of a random model breaks nothing.

    Args:
        steps: gradient steps.
        restarts: runs from fresh uniform starts.
        draws: E.
        step_size: in units of eps.
        loss: `"ce"`, `"cw"` or a function of (logits, labels) that keeps nothing of its own for each sample.
        target: towards a random wrong class, or the class least likely of the clean image, instead of away from the
            label. An image counts as broken as soon as the label is lost.

    >>> pgd(20, step_size=1 / 8).name
    'PGD-20'
    """

    def attack(model: Model, images: Tensor, labels: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        return linf_pgd(
            one_draw(model) if draws > 1 else model,
            images,
            labels,
            eps=eps,
            steps=steps,
            step_size=step_size * eps,
            loss=loss,
            restarts=restarts,
            draws=draws,
            targets=None if target is None else _targets(model, images, labels, target, generator),
            early_stop=not getattr(model, "random", False),
            generator=generator,
        )

    named = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    kind = {"ce": "PGD", "cw": "CW"}.get(named, f"PGD {named}")
    name = f"{'EOT-' if draws > 1 else ''}{kind}-{steps}{f' {target}' if target else ''}".replace("_", " ")
    family = "pgd" if loss == "ce" and target is None else f"pgd {named} {target or ''}".strip()
    return Rung(
        name=name,
        kind="adaptive" if draws > 1 else "white_box",
        attack=attack,
        steps=steps,
        draws=draws,
        family=family,
        settings={"restarts": restarts, "step_size": step_size, "loss": named, "target": target},
    )


def transfer(surrogate: Model, *, steps: int = 40) -> Rung:
    """PGD on another model, whose images are then shown to this one; it is put into eval mode meanwhile.

    >>> transfer(lambda x: x.flatten(1)).kind
    'transfer'
    """

    def attack(model: Model, images: Tensor, labels: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        return linf_pgd(surrogate, images, labels, eps=eps, steps=steps, generator=generator)

    return Rung(name="transfer", kind="transfer", attack=attack, steps=steps)


def noise() -> Rung:
    """+eps or -eps on every pixel, at random: what no attack may be weaker than.

    >>> noise().kind
    'noise'
    """

    def attack(model: Model, images: Tensor, labels: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        signs = torch.randint(2, images.shape, generator=generator, device=generator.device).to(images).mul_(2).sub_(1)
        return (images + eps * signs).clamp_(0, 1)

    return Rung(name="noise", kind="noise", attack=attack)


def standard_rungs(
    scale: Scale = "quick", *, random_model: bool = False, surrogate: Model | None = None
) -> tuple[Rung, ...]:
    """The rungs of a scale; each needs the extra `attacks` (torchattacks).

    `quick`: PGD-20 (step eps / 8), APGD-CE and targeted APGD with 30 steps, noise. `standard` adds PGD-100, CW-30 and
    Square with 500 queries; `full` takes the four attacks of AutoAttack at their published lengths (100 steps, 5000
    queries) in the place of the short ones. For a random model every gradient is averaged over 8 draws (`full`: 20,
    and 32 in PGD), PGD has 3 restarts and APGD follows CE and DLR, as AutoAttack `rand` does (ours).

    Args:
        scale: `"quick"`, `"standard"` or `"full"`.
        random_model: whether predictions of one image differ from call to call.
        surrogate: adds a transfer rung from this model.

    >>> [rung.name for rung in standard_rungs("quick")]
    ['PGD-20', 'APGD-CE', 'APGD-T', 'noise']
    """
    from aisec_common.torch.robustness.torchattacks_attacks import apgd, fab, square

    if scale not in get_args(Scale):
        raise ValueError(f"scale must be one of {', '.join(get_args(Scale))}, not {scale!r}")
    full = scale == "full"
    steps, queries = (100, 5000) if full else (30, 500)
    extra = [] if surrogate is None else [transfer(surrogate)]
    if random_model:
        draws, long = (20, pgd(100, draws=32, restarts=3)) if full else (8, pgd(40, draws=8, restarts=3))
        rungs = [pgd(10), long if scale != "quick" else pgd(20, draws=8)]
        rungs += [apgd("ce", steps, draws=draws), apgd("dlr", steps, draws=draws)]
    else:
        rungs = [pgd(20, step_size=1 / 8)]
        rungs += [] if scale == "quick" else [pgd(100, step_size=1 / 8), pgd(30, loss="cw")]
        rungs += [apgd("ce", steps), apgd("targeted", steps)]
        rungs += [fab(steps)] if full else []
    rungs += [] if scale == "quick" else [square(queries)]
    return (*rungs, noise(), *extra)


def _targets(model: Model, images: Tensor, labels: Tensor, target: str, generator: torch.Generator) -> Tensor:
    with torch.no_grad(), evaluating(model):
        logits = mean_logits(model, images)
    others = logits.scatter(1, labels[:, None], torch.inf)
    if target == "least_likely":
        return others.argmin(1)
    steps = torch.randint(1, logits.shape[1], (len(labels),), generator=generator, device=generator.device)
    return (labels + steps.to(labels)) % logits.shape[1]

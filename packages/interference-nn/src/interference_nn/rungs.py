"""The rungs R1..R8 of the ladder: attackers from one who knows nothing to one who averages over the backgrounds.

| rung | attacker | what it is for |
| --- | --- | --- |
| R0 | none | clean accuracy |
| R1 | transfer: PGD on the undefended network | the weakest; what an overoptimistic report shows |
| R2 | oblivious: PGD on the network without its interference | has the weights, leaves out the defence |
| R3 | PGD-10 through one fresh background a step | common, and wrong for a random defence |
| R4 | PGD through the average of M draws, as a call makes it | |
| R5 | EOT-PGD: the log of the mean probability of E draws, step eps/6, restarts | required for random inputs |
| R6 | APGD on CE and DLR through E draws; AutoAttack's attacks for a deterministic model | |
| R7 | Square, and HopSkipJump where the Adversarial Robustness Toolbox is there | no gradient: finds masking |
| R8 | R5 targeted at a random and at the least likely class, APGD-T | never to be compared with untargeted ones |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from aisec_common.torch.linf_pgd import Model, linf_pgd
from aisec_common.torch.robustness.rungs import Kind, Rung, noise, one_draw, pgd, transfer
from torch import Tensor

from interference_nn.art_hopskipjump import art_installed, hopskipjump

NAMES = ("R1", "R2", "R3", "R4", "R5", "R6", "R7", "R8")
EffortName = Literal["quick", "standard", "full"]
EOT_STEP = 1 / 6


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How hard each rung tries.

    Args:
        rungs: which of R1..R8 are climbed.
        transfer_steps: PGD steps of R1 and R2.
        average_steps: of R4.
        eot_steps: of R5.
        draws: E of R5.
        restarts: of R5.
        apgd_steps: of R6.
        apgd_draws: E of R6.
        square_queries: of R7.
        decision_queries: of HopSkipJump, 0 leaves it out.

    Raises:
        ValueError: for an unknown rung.

    >>> Effort(rungs=("R1", "R5")).draws
    32
    """

    rungs: tuple[str, ...] = NAMES
    transfer_steps: int = 40
    average_steps: int = 100
    eot_steps: int = 100
    draws: int = 32
    restarts: int = 3
    apgd_steps: int = 100
    apgd_draws: int = 20
    square_queries: int = 5000
    decision_queries: int = 5000

    def __post_init__(self) -> None:
        if unknown := [name for name in self.rungs if name not in NAMES]:
            raise ValueError(f"rungs must be among {', '.join(NAMES)}, not {unknown[0]!r} (R0 is always there)")


EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(rungs=("R1", "R3", "R5"), draws=8, eot_steps=20, restarts=1),
    "standard": Effort(
        rungs=NAMES[:7],
        average_steps=40,
        draws=8,
        eot_steps=40,
        apgd_steps=30,
        apgd_draws=8,
        square_queries=500,
        decision_queries=0,
    ),
    "full": Effort(),
}


def effort_named(effort: EffortName | Effort) -> Effort:
    """An effort by name, or the one given.

    Raises:
        ValueError: for an unknown name.

    >>> effort_named("quick").rungs
    ('R1', 'R3', 'R5')
    """
    if isinstance(effort, Effort):
        return effort
    if effort not in get_args(EffortName):
        raise ValueError(f"effort must be one of {', '.join(EFFORTS)}, or an Effort, not {effort!r}")
    return EFFORTS[effort]


def ladder_rungs(
    model: Model,
    effort: Effort,
    *,
    surrogates: Mapping[str, Model] | None = None,
) -> tuple[tuple[Rung, ...], dict[str, str]]:
    """The rungs that one model climbs, from its kind: random or deterministic, with interference or without.

    A model with `random` true (and `once(images)`, one draw) gets the rungs through averages; for any other, E = 1: M
    and E are then the same image, bit for bit. R2 needs `without_interference(images)`. Noise of +-eps is always there.

    Args:
        model: images to logits.
        effort: how hard.
        surrogates: undefended models for R1; the first is R1 itself, the others stand beside it as `R1 NAME`.

    Returns:
        The rungs, and for each that was asked for and cannot be climbed the reason.

    >>> rungs, left_out = ladder_rungs(lambda x: x.flatten(1), Effort(rungs=("R2", "R3")))
    >>> [rung.name for rung in rungs], left_out
    (['R3 one draw', 'noise'], {'R2': 'the model has no interference to leave out'})
    """
    random = bool(getattr(model, "random", False))
    made: list[Rung] = []
    left_out: dict[str, str] = {}
    for name in sorted(effort.rungs):
        found = _MAKERS[name](model, effort, random, surrogates or {})
        if isinstance(found, str):
            left_out[name] = found
        else:
            made += found
    if "R7" in effort.rungs and effort.decision_queries and not art_installed():
        left_out["R7 HopSkipJump"] = "needs [art]"
    return (*made, noise()), left_out


def behind(rungs: Sequence[Rung], stand_in: Model) -> tuple[Rung, ...]:
    """The same rungs for an attacker who holds `stand_in`, the model with another key, say, and never asks the model.

    >>> behind([noise()], lambda x: x)[0].kind
    'noise'
    """
    return tuple(replace(rung, attack=_instead(rung, stand_in)) for rung in rungs)


def _instead(rung: Rung, stand_in: Model) -> Callable[..., Tensor]:
    def attack(model: Model, images: Tensor, labels: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        return rung.attack(stand_in, images, labels, eps, generator)

    return attack


def _transfers(model: Model, effort: Effort, random: bool, surrogates: Mapping[str, Model]) -> list[Rung] | str:
    if not surrogates:
        return "no undefended model was given"
    return [
        replace(transfer(surrogate, steps=effort.transfer_steps), name=f"R1 {name}" if i else "R1 transfer")
        for i, (name, surrogate) in enumerate(surrogates.items())
    ]


def _oblivious(model: Model, effort: Effort, random: bool, surrogates: Mapping[str, Model]) -> list[Rung] | str:
    bare: Model | None = getattr(model, "without_interference", None)
    if bare is None:
        return "the model has no interference to leave out"
    return [replace(transfer(bare, steps=effort.transfer_steps), name="R2 oblivious")]


def _one_draw(model: Model, effort: Effort, random: bool, surrogates: Mapping[str, Model]) -> list[Rung]:
    def attack(model: Model, images: Tensor, labels: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        return linf_pgd(one_draw(model), images, labels, eps=eps, early_stop=not random, generator=generator)

    return [Rung(name="R3 one draw", kind="white_box", attack=attack, steps=10, family="one draw")]


def _average(model: Model, effort: Effort, random: bool, surrogates: Mapping[str, Model]) -> list[Rung]:
    # a call of a random model is an average already, so that this rung is one of those that nothing weaker may beat
    kind: Kind = "adaptive" if random else "white_box"
    return [replace(pgd(effort.average_steps), name=f"R4 PGD-{effort.average_steps}", kind=kind)]


def _eot(model: Model, effort: Effort, random: bool, surrogates: Mapping[str, Model]) -> list[Rung]:
    draws = effort.draws if random else 1
    rung = pgd(effort.eot_steps, draws=draws, restarts=effort.restarts, step_size=EOT_STEP)
    return [replace(rung, name=f"R5 {rung.name}")]


def _apgd(model: Model, effort: Effort, random: bool, surrogates: Mapping[str, Model]) -> list[Rung]:
    from aisec_common.torch.robustness.torchattacks_attacks import apgd, autoattack

    if not random and effort.apgd_steps >= 100:
        return [replace(autoattack("standard"), name="R6 AutoAttack")]
    draws = effort.apgd_draws if random else 1
    rungs = [apgd("ce", effort.apgd_steps, draws=draws), apgd("dlr", effort.apgd_steps, draws=draws)]
    return [replace(rung, name=f"R6 {rung.name}") for rung in rungs]


def _gradient_free(model: Model, effort: Effort, random: bool, surrogates: Mapping[str, Model]) -> list[Rung]:
    from aisec_common.torch.robustness.torchattacks_attacks import square

    rungs = [replace(square(effort.square_queries), name="R7 Square")]
    if effort.decision_queries and art_installed():
        attack = hopskipjump(effort.decision_queries)
        rungs.append(Rung(name="R7 HopSkipJump", kind="gradient_free", attack=attack, steps=effort.decision_queries))
    return rungs


def _targeted(model: Model, effort: Effort, random: bool, surrogates: Mapping[str, Model]) -> list[Rung]:
    from aisec_common.torch.robustness.torchattacks_attacks import apgd

    draws = effort.draws if random else 1
    targets: tuple[Literal["random", "least_likely"], ...] = ("random", "least_likely")
    rungs = [
        pgd(effort.eot_steps, draws=draws, restarts=effort.restarts, step_size=EOT_STEP, target=target)
        for target in targets
    ]
    if not random:  # torchattacks chooses its targets by one pass, so that it has no targeted APGD for random models
        rungs.append(apgd("targeted", effort.apgd_steps))
    return [replace(rung, name=f"R8 {rung.name}") for rung in rungs]


_MAKERS: Mapping[str, Callable[[Model, Effort, bool, Mapping[str, Model]], list[Rung] | str]] = {
    "R1": _transfers,
    "R2": _oblivious,
    "R3": _one_draw,
    "R4": _average,
    "R5": _eot,
    "R6": _apgd,
    "R7": _gradient_free,
    "R8": _targeted,
}

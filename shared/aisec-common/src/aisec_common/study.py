"""A paper's claims as a runnable study: arms, seeds, and what must come out of them."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ScaleName = Literal["quick", "standard", "full"]
SCALES: tuple[ScaleName, ...] = ("quick", "standard", "full")
Metrics = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much a study computes; a room subclasses it with its own settings (training steps, sizes).

    Fields of the subclass are written into each record as its config.

    Attributes:
        seeds: seeds are 0 .. `seeds` - 1.
        arms: those of the study that it runs; None is all of them.
    """

    seeds: int
    arms: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, not {self.seeds}")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one trial gave: its metrics, and per-sample values by sample id."""

    metrics: Metrics
    samples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class TrialLog(Protocol):
    """What a trial may tell while it runs; the runner hands one to each trial."""

    def sample(self, id: str, **values: Any) -> None:
        """Keeps the values of one sample; they become one line of the JSONL beside the record."""

    def progress(self, done: int, total: int) -> None:
        """Says that `done` of `total` steps are finished; call it as often as you like."""

    def data(self, name: str, content: Any) -> None:
        """Writes the sha256 of an input (bytes, str or array) into the record."""


@dataclass(frozen=True, kw_only=True)
class Extra:
    """An optional extra of the room (`pip install aisec-room[name]`) without which some arms are skipped."""

    name: str
    modules: tuple[str, ...]
    arms: tuple[str, ...]

    @property
    def installed(self) -> bool:
        """Whether every module is there, found without importing one."""
        try:
            return all(importlib.util.find_spec(module) is not None for module in self.modules)
        except ModuleNotFoundError:  # the parent of a dotted name is absent
            return False


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of the paper that the study can confirm or refute.

    The effect of one seed is metric(arm) - metric(over). `judge` compares its interval over the seeds with `margin`,
    and asks that the arm also beats `control`, the method with its key part replaced.

    Args:
        text: the claim in words.
        arm: the arm it is about.
        metric: the metric compared; none with `effect`.
        over: the arm it is compared with; None compares metric(arm) with the margin itself.
        control: the arm whose key part is random, shuffled or off; required unless margin < 0 (non-inferiority).
        margin: what the effect must exceed.
        lower_is_better: turns the effect round, metric(over) - metric(arm).
        effect: any function of one seed's metrics by arm, instead of `metric` and `over`.
        unit: "seed" for claims over trained or drawn models; "sample" for a claim about one given model, paired over
            the samples of its first seed.
        premise: what the other claims presuppose, about baselines alone and without a control; where it does not hold,
            they are undecided.
        paper: the number the paper gives.

    Raises:
        ValueError: if the parts do not fit together.

    >>> claim = Claim(text="keeps refusals", arm="procon", over="sft", control="random", metric="refusal_rate")
    >>> claim.effect_of({"procon": {"refusal_rate": 0.75}, "sft": {"refusal_rate": 0.25}})
    0.5
    """

    text: str
    arm: str
    metric: str | None = None
    over: str | None = None
    control: str | None = None
    margin: float = 0.0
    lower_is_better: bool = False
    effect: Callable[[Mapping[str, Metrics]], float] | None = None
    unit: Literal["seed", "sample"] = "seed"
    premise: bool = False
    paper: str = ""

    def __post_init__(self) -> None:
        said = f"claim {self.text!r}"
        if (self.metric is None) == (self.effect is None):
            raise ValueError(f"{said}: give either metric or effect")
        if self.effect is not None and (self.over is not None or self.lower_is_better):
            raise ValueError(f"{said}: over and lower_is_better belong to metric; write them into effect")
        if self.lower_is_better and self.over is None:
            raise ValueError(f"{said}: lower_is_better needs over")
        if self.premise and self.control is not None:
            raise ValueError(f"{said}: a premise is about baselines and takes no control")
        if self.margin >= 0 and self.control is None and not self.premise:
            raise ValueError(f"{said}: control is missing: name the arm whose key part is replaced")
        if self.margin < 0 and self.control is not None:
            raise ValueError(f"{said}: margin < 0 is non-inferiority and takes no control")
        if self.arm in (self.over, self.control):
            raise ValueError(f"{said}: arm {self.arm!r} cannot be its own over or control")
        if self.control is not None and self.control == self.over:
            raise ValueError(f"{said}: control and over are the same arm, so the control would decide nothing")
        if not math.isfinite(self.margin):
            raise ValueError(f"{said}: margin must be a number, not {self.margin}")
        if self.unit not in ("seed", "sample"):
            raise ValueError(f"{said}: unit must be 'seed' or 'sample', not {self.unit!r}")

    def effect_of(self, metrics: Mapping[str, Metrics], arm: str | None = None) -> float:
        """The effect in one seed's metrics by arm, with `arm` (say, the control) in the place of the claim's own."""
        placed = {**metrics, self.arm: metrics[arm]} if arm else metrics
        if self.effect is not None:
            return float(self.effect(placed))
        assert self.metric is not None
        value = float(placed[self.arm][self.metric])
        if self.over is None:
            return value
        difference = value - float(placed[self.over][self.metric])
        return -difference if self.lower_is_better else difference


@dataclass(frozen=True, kw_only=True)
class Study:
    """The experiment section of a paper, runnable: `aisec reproduce ROOM`.

    Args:
        room: the room's short name.
        trial: (arm, prepared, seed, scale, log) -> metrics of one arm at one seed.
        arms: names of the method, its switch-offs, baselines and controls.
        scales: settings of "quick", "standard" and "full".
        claims: what the paper says.
        prepare: (seed, scale) -> what the arms of one seed share; called once per seed in the process that runs them,
            and again on resume: it and `trial` draw from `aisec_common.seeding`, never from a global generator, and
            no arm changes what another reads.
        figures: functions of {seed: {arm: Outcome}} that draw a matplotlib figure.
        extras: arms that need an optional extra.

    Raises:
        ValueError: if a claim, scale or extra names an arm that is not there, or a scale is missing.
    """

    room: str
    trial: Callable[[str, Any, int, Any, TrialLog], Metrics]
    arms: tuple[str, ...]
    scales: Mapping[ScaleName, Scale]
    claims: tuple[Claim, ...]
    prepare: Callable[[int, Any], Any] | None = None
    figures: tuple[Callable[[Mapping[int, Mapping[str, Outcome]]], Figure], ...] = ()
    extras: tuple[Extra, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.arms)) != len(self.arms) or not self.arms:
            raise ValueError(f"study {self.room!r}: arms must be distinct and at least one, not {self.arms}")
        if odd := [arm for arm in self.arms if not re.fullmatch(r"[\w.=+-]+", arm)]:
            raise ValueError(f"study {self.room!r}: arm {odd[0]!r} must be letters, digits and _.=+-")
        if missing := [name for name in SCALES if name not in self.scales]:
            raise ValueError(f"study {self.room!r}: scales lacks {', '.join(missing)}")
        for name, scale in self.scales.items():
            if unknown := set(scale.arms or ()) - set(self.arms):
                raise ValueError(f"study {self.room!r}: scale {name!r} names unknown arms {sorted(unknown)}")
        for claim in self.claims:
            for arm in (claim.arm, claim.over, claim.control):
                if arm is not None and arm not in self.arms:
                    raise ValueError(f"study {self.room!r}: claim {claim.text!r} names the unknown arm {arm!r}")
        for extra in self.extras:
            if unknown := set(extra.arms) - set(self.arms):
                raise ValueError(f"study {self.room!r}: extra {extra.name!r} names unknown arms {sorted(unknown)}")

    def missing_extra(self, *arms: str | None) -> str | None:
        """The name of the extra that one of `arms` needs and that is not installed, or None."""
        for extra in self.extras:
            if set(arms) & set(extra.arms) and not extra.installed:
                return extra.name
        return None

    def runnable_arms(self, scale: ScaleName, arms: Collection[str] | None = None) -> tuple[str, ...]:
        """The arms of a scale, or those chosen instead, whose extras are installed, in the study's order.

        Raises:
            ValueError: for an arm that the study does not have.
        """
        if unknown := set(arms or ()) - set(self.arms):
            raise ValueError(f"arms: {self.room} has no {sorted(unknown)[0]!r}; choose from {', '.join(self.arms)}")
        chosen = arms or self.scales[scale].arms or self.arms
        return tuple(arm for arm in self.arms if arm in chosen and self.missing_extra(arm) is None)


def content_hash(content: Any) -> str:
    """sha256 of an input: bytes and str as they are, arrays and tensors by dtype, shape and bytes.

    >>> content_hash("a") == content_hash(b"a")
    True
    """
    if isinstance(content, str):
        content = content.encode()
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    import numpy as np

    array = np.ascontiguousarray(content)
    if array.dtype.hasobject:
        raise TypeError(f"content must be bytes, str or a numeric array, not {type(content).__name__}")
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + array.tobytes()).hexdigest()

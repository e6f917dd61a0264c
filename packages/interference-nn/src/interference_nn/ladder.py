"""The evaluation ladder: one network and its baselines under attackers from naive to adaptive, and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from aisec_common.torch.linf_pgd import Model, check_images
from aisec_common.torch.robustness.report import robustness_report
from torch import Tensor

from interference_nn.ladder_report import NET, LadderReport
from interference_nn.net import InterferenceNet
from interference_nn.rungs import Effort, EffortName, behind, effort_named, ladder_rungs

PLAIN = "plain"
PASSES = 10
OTHER_KEY = b"not the key"
Progress = Callable[[str, int, int], None]


def ladder(
    net: Model,
    data: Iterable[tuple[Tensor, Tensor]] | tuple[Tensor, Tensor],
    *,
    eps: float | Sequence[float],
    baselines: Mapping[str, Model] | None = None,
    surrogates: Mapping[str, Model] | None = None,
    effort: EffortName | Effort = "standard",
    over: str | None = None,
    control: str | None = None,
    batch_size: int = 256,
    seed: int = 0,
    folder: Path | str | None = None,
    probes: int = 200,
    progress: Progress | None = None,
) -> LadderReport:
    """Climbs R0..R8 with a network and each baseline on the same images; see `interference_nn.rungs` for the rungs.

        worst case of an image = right under every rung, in each of 10 fresh passes (one for a deterministic model)

    A network in mode `"keyed"` is climbed twice: by an attacker who knows the key, which is what the verdict is about,
    and by one who holds the same network with another key.

    Args:
        net: an `InterferenceNet`, or any model with logits [B, K] that is to be judged.
        data: batches (images in [0, 1], labels), or one pair of tensors.
        eps: one radius or several, in units of images in [0, 1].
        baselines: other models by name, such as `{"plain": ..., "PGD-AT": ...}`.
        surrogates: undefended models for R1, which attack every model; by default the baseline `"plain"`. An
            adversarially trained one beside it finds masking that a plain one misses.
        effort: `"quick"`, `"standard"`, `"full"` or an `Effort`.
        over: the baseline that the verdict compares with; by default the one with the best worst case.
        control: a baseline with the key part replaced, such as noise for backgrounds; without one the verdict cannot
            say that it was the backgrounds.
        batch_size: images attacked together.
        seed: of starts, draws and targets.
        folder: samples are kept there, one subfolder a model, as they come; a second call goes on with them.
        probes: images on which masking is looked for; 0 leaves the flags out.
        progress: called as `progress(what, done, total)`.

    Returns:
        The report: table, verdict, figure, `save`.

    Raises:
        ValueError: for wrong images, labels, eps or names.

    Source: ours; the paper says PGD only. EOT and adaptive attacks: Athalye et al. 2018, Tramer et al. 2020.

    >>> linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> data = torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    >>> ladder(linear, data, eps=0.1, effort=Effort(rungs=("R3",)), probes=0).table().shape[0]
    1
    """
    effort = effort_named(effort)
    baselines = dict(baselines or {})
    for name, given in (("over", over), ("control", control)):
        if given is not None and given not in baselines:
            raise ValueError(
                f"{name} must be one of the baselines {', '.join(baselines) or '(none given)'}, not {given!r}"
            )
    if NET in baselines:
        raise ValueError(f"baselines must not be called {NET!r}, the name of net")
    images, labels = gathered(data)
    radii = (float(eps),) if isinstance(eps, (int, float)) else tuple(float(radius) for radius in eps)
    if surrogates is None:
        surrogates = {PLAIN: baselines[PLAIN]} if PLAIN in baselines else {}
    reports, left_out = {}, {}
    for name, (model, stand_in) in _climbers(net, baselines).items():
        rungs, left_out[name] = ladder_rungs(model, effort, surrogates=surrogates)
        reports[name] = robustness_report(
            model,
            images,
            labels,
            eps=radii,
            rungs=rungs if stand_in is None else behind(rungs, stand_in),
            passes=PASSES if getattr(model, "random", False) else 1,
            batch_size=batch_size,
            seed=seed,
            folder=None if folder is None else Path(folder) / name.replace(" ", "-"),
            flags=probes > 0,
            probes=max(probes, 1),
            progress=_named(progress, name),
            about={"model": name},
        )
    return LadderReport(
        reports=reports,
        eps=radii,
        left_out={name: missing for name, missing in left_out.items() if missing},
        effort=effort,
        over=over,
        control=control,
    )


def gathered(data: Iterable[tuple[Tensor, Tensor]] | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Images and labels of all batches, or the pair of tensors as it is.

    Raises:
        ValueError: if there is no image, or one outside [0, 1].
        TypeError: if it yields something else than pairs of tensors.

    >>> gathered([(torch.zeros(2, 1, 1, 1), torch.tensor([0, 1]))] * 2)[1].tolist()
    [0, 1, 0, 1]
    """
    pairs: list[Any] = [data] if isinstance(data, tuple) and isinstance(data[0], Tensor) else list(data)
    if not pairs:
        raise ValueError("data must hold at least one image")
    if not all(len(pair) == 2 and all(isinstance(part, Tensor) for part in pair) for pair in pairs):
        raise TypeError("data must give pairs (images, labels) of tensors; a DataLoader over such pairs does")
    images, labels = (torch.cat([torch.as_tensor(pair[i]) for pair in pairs]) for i in (0, 1))
    check_images(images)
    return images, labels.long()


def _climbers(net: Model, baselines: Mapping[str, Model]) -> dict[str, tuple[Model, Model | None]]:
    """Who is judged, by name, each with what the attacker holds in its place, if that is another model."""
    if isinstance(net, InterferenceNet) and net.settings.mode == "keyed":
        other = net.variant(key=OTHER_KEY)
        climbers: dict[str, tuple[Model, Model | None]] = {NET: (net, None), f"{NET} key secret": (net, other)}
    else:
        climbers = {NET: (net, None)}
    return {**climbers, **{name: (model, None) for name, model in baselines.items()}}


def _named(progress: Progress | None, model: str) -> Progress | None:
    if progress is None:
        return None
    tell = progress
    return lambda what, done, total: tell(f"{model}: {what}", done, total)

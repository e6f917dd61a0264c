"""Runs a ladder of attacks on a model, sample by sample, and looks for signs that its gradients are masked."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from aisec_common.files import locked, require_writable
from aisec_common.torch.linf_pgd import Model, check_images, evaluating, input_gradient
from aisec_common.torch.model_hash import model_hash
from aisec_common.torch.robustness.flags import GREY, Flag, Seen, raised
from aisec_common.torch.robustness.measurement import Measurement, Progress
from aisec_common.torch.robustness.result import CLEAN, RobustnessReport
from aisec_common.torch.robustness.rungs import Rung, one_draw, pgd
from aisec_common.torch.robustness.sample_log import SampleLog
from torch import Tensor, nn

GRID = (0.5, 1.0, 2.0, 4.0)  # of eps, for F2
EOT_DRAWS = 32  # for F3 and F5
COSINE_IMAGES = 32


def robustness_report(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | Sequence[float],
    rungs: Sequence[Rung],
    passes: int = 1,
    batch_size: int = 256,
    seed: int = 0,
    folder: Path | None = None,
    ids: Sequence[str] | None = None,
    flags: bool = True,
    probes: int = 200,
    progress: Progress | None = None,
    about: Mapping[str, Any] | None = None,
) -> RobustnessReport:
    """Attacks every image on every rung at every eps and says how many stay right, and whether that can be believed.

    An image is right only if it is right in all of `passes` fresh forward passes. Images wrong as they are count as
    wrong on every rung and are not attacked. Each attack's images are checked to be in the ball and in [0, 1]. The same
    seeds of torch's global generator are set before scoring on every rung, and around every batch of an attack, so that
    a model that draws from it sees the same draws and a resumed report equals an unbroken one to the bit.

    Args:
        model: a module (run in eval mode, restored afterwards) or a callable, images in [0, 1] to logits [B, K]. A
            random model may have `once(images)`, one draw of it: attacks that average draws use that.
        images: [n, C, H, W] in [0, 1]; moved batch by batch to where the model's parameters are.
        labels: [n].
        eps: one or more radii >= 0; the first positive one is where the flags probe.
        rungs: attacks with distinct names; see `standard_rungs`.
        passes: 1 for a deterministic model; 10 for a random one.
        batch_size: images attacked together; part of what a resumed report must share.
        seed: of all random starts and draws.
        folder: where samples are kept as they come; the same call with the same folder goes on where it stopped.
        ids: names of the images, for the samples; default their numbers.
        flags: look for F1 to F6, which costs PGD with 10, 20 (five eps) and 100 steps on the first `probes` images,
            times 8 draws for a random model.
        probes: how many images.
        progress: called with (rung, images done, images in all).
        about: what else the header should say, values that JSON can hold.

    Returns:
        Accuracies, samples, flags and cost.

    Raises:
        ValueError: for bad images, labels, eps or rungs, an attack that leaves the ball, or a folder of another report.

    Source: ours, after Carlini et al., 2019.
    """
    radii = (float(eps),) if isinstance(eps, (int, float)) else tuple(float(e) for e in eps)
    _check(images, labels, radii, rungs, passes, batch_size, probes, ids)
    names = [str(number) for number in range(len(images))] if ids is None else list(ids)
    config = {
        "seed": seed,
        "passes": passes,
        "batch_size": batch_size,
        "eps": radii,
        "rungs": [rung.described() for rung in rungs],
        "flags": flags and probes,
        "images": _hash(images),
        "labels": _hash(labels),
        "ids": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
        "model": model_hash(model) if isinstance(model, nn.Module) else None,
        "torch": torch.__version__,
        "about": dict(about or {}),
    }
    if folder is not None:
        require_writable(folder, "folder")
    with contextlib.nullcontext() if folder is None else locked(folder, "folder"), evaluating(model):
        run = Measurement(
            model=model,
            images=images,
            labels=labels,
            ids=names,
            passes=passes,
            batch_size=batch_size,
            seed=seed,
            log=SampleLog(folder, config),
            progress=progress or (lambda what, done, total: None),
        )
        run.clean()
        for radius in radii:
            for rung in rungs:
                run.attack(rung, radius, len(images))
        found = _flags(run, rungs, radii, min(probes, len(images))) if flags else None
    return _report(run, tuple(rungs), radii, found, dict(about or {}))


def _flags(run: Measurement, rungs: Sequence[Rung], radii: Sequence[float], first: int) -> tuple[Flag, ...]:
    """Runs the probes and judges them together with the rungs."""
    import numpy as np

    eps = next((radius for radius in radii if radius > 0), None)
    if eps is None:
        raise ValueError("eps: flags need a positive eps to probe at; give one, or flags=False")
    draws = 8 if run.model.random else 1
    probes = [replace(pgd(steps, draws=draws), name=f"probe PGD-{steps}") for steps in (10, 100)]
    if run.model.random:
        probes.append(replace(pgd(10, draws=EOT_DRAWS), name=f"probe PGD-10, {EOT_DRAWS} draws"))
    for probe in probes:
        run.attack(probe, eps, first)
    along = replace(pgd(20, draws=draws), name="probe along eps")
    steps = sorted({min(share * eps, 1.0) for share in GRID} | {GREY})
    for radius in steps:
        run.attack(along, radius, first)
    clean = run.right(CLEAN, 0.0)[:first]
    cosine, zero = _gradients(run, first)
    labels = run.labels[:first].cpu().numpy()
    seen = Seen(
        rungs=rungs,
        eps=[radius for radius in radii if radius > 0],
        right={(rung.name, radius): run.right(rung.name, radius) for rung in rungs for radius in radii}
        | {(probe.name, eps): run.right(probe.name, eps) for probe in probes},
        probes=probes,
        grid=[(0.0, clean), *((radius, run.right(along.name, radius)) for radius in steps)],
        chance=float(np.bincount(labels).max() / len(labels)),
        cosine=cosine,
        zero_gradients=zero,
    )
    return raised(seen)


def _gradients(run: Measurement, first: int) -> tuple[float | None, float]:
    """The cosine between two gradient estimates of a random model, and the share of gradients that are exactly zero."""
    zero: list[Tensor] = []
    cosines: list[Tensor] = []
    with run.seeded("gradients"):
        for images, labels in run.right_images(first):
            gradient, _ = input_gradient(run.model, images, labels)
            zero.append((gradient == 0).flatten(1).all(1).cpu())
            if run.model.random and sum(len(found) for found in cosines) < COSINE_IMAGES:
                few = images[:COSINE_IMAGES], labels[:COSINE_IMAGES]
                one, two = (input_gradient(one_draw(run.model), *few, draws=EOT_DRAWS)[0].flatten(1) for _ in range(2))
                one, two = (g / g.abs().amax(1, keepdim=True).clamp(min=1e-38) for g in (one, two))
                cosines.append(nn.functional.cosine_similarity(one, two).cpu())
    share = float(torch.cat(zero).double().mean()) if zero else 0.0
    return (float(torch.cat(cosines).double().mean()) if cosines else None), share


def _report(
    run: Measurement,
    rungs: tuple[Rung, ...],
    radii: tuple[float, ...],
    flags: tuple[Flag, ...] | None,
    about: dict[str, Any],
) -> RobustnessReport:
    import pandas as pd

    samples, cost = [], []
    for name, eps in [(CLEAN, 0.0), *((rung.name, radius) for radius in radii for rung in rungs)]:
        samples += [
            {"rung": name, "eps": eps, "id": s.id, "right": s.right, "mean": s.mean, "distance": s.distance}
            for s in run.samples(name, eps)
        ]
        spent = [batch for unit, batch in run.log.batches.items() if unit[:2] == (name, eps)]
        forward, backward = sum(b.forwards for b in spent), sum(b.backwards for b in spent)
        n = len(run.images)
        cost.append({"rung": name, "eps": eps, "forward": forward / n, "backward": backward / n})
    return RobustnessReport(
        rungs=rungs,
        eps=radii,
        passes=run.passes,
        samples=pd.DataFrame(samples),
        cost=pd.DataFrame(cost),
        flags=flags,
        about=about,
    )


def _check(
    images: Tensor,
    labels: Tensor,
    radii: Sequence[float],
    rungs: Sequence[Rung],
    passes: int,
    batch_size: int,
    probes: int,
    ids: Sequence[str] | None,
) -> None:
    check_images(images)
    if not isinstance(labels, Tensor) or labels.dtype != torch.long or labels.shape != (len(images),):
        raise ValueError(f"labels must be a tensor of {len(images)} integers (torch.long), one for each image")
    if int(labels.min()) < 0:
        raise ValueError(f"labels must be classes 0..K-1, but one is {int(labels.min())}; drop those images")
    if not radii or not all(0 <= radius <= 1 for radius in radii) or len(set(radii)) < len(radii):
        raise ValueError(f"eps must be distinct radii in [0, 1] (for instance 8/255), not {list(radii)}")
    names = [rung.name for rung in rungs]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"rungs must be one or more with distinct names, not {names}; rename with dataclasses.replace")
    if min(passes, batch_size, probes) < 1:
        raise ValueError(f"passes, batch_size and probes must be >= 1, not {passes}, {batch_size}, {probes}")
    if ids is not None and (len(ids) != len(images) or len(set(ids)) < len(ids)):
        raise ValueError(f"ids must be {len(images)} distinct names, one for each image, not {len(set(ids))}")


def _hash(tensor: Tensor) -> str:
    whole = tensor.detach().cpu().contiguous()
    return hashlib.sha256(f"{whole.dtype} {list(whole.shape)}".encode() + whole.numpy().tobytes()).hexdigest()

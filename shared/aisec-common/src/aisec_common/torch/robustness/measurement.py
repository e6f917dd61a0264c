"""The measurements behind a robustness report: batch by batch, seeded, counted, kept as they come."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from aisec_common.seeding import derived_seed, torch_rng
from aisec_common.torch.linf_pgd import Model, mean_logits
from aisec_common.torch.robustness.counted_model import CountedModel
from aisec_common.torch.robustness.result import CLEAN
from aisec_common.torch.robustness.rungs import Rung
from aisec_common.torch.robustness.sample_log import Batch, Sample, SampleLog
from torch import Tensor, nn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Progress = Callable[[str, int, int], None]
TOLERANCE = 1e-6  # rounding of x + eps in 32 bit


class Measurement:
    """The measurements of one report, batch by batch through its log."""

    def __init__(
        self,
        *,
        model: Model,
        images: Tensor,
        labels: Tensor,
        ids: Sequence[str],
        passes: int,
        batch_size: int,
        seed: int,
        log: SampleLog,
        progress: Progress,
    ) -> None:
        self.images, self.labels, self.ids, self.passes = images.detach(), labels, ids, passes
        self.batch_size, self.seed, self.log, self.progress = batch_size, seed, log, progress
        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        self.device = images.device if parameter is None else parameter.device
        self.model = CountedModel(model, random=bool(getattr(model, "random", False)))
        self.model.random |= self._differs()

    def clean(self) -> None:
        """Scores the images as they are."""
        for number, part in self._batches(len(self.images)):
            if (CLEAN, 0.0, number) not in self.log.batches:
                images, labels = self._on_device(part)
                shares = self._shares(images, labels, number)
                self.log.add((CLEAN, 0.0, number), self._batch(part, shares == 1, shares, torch.zeros(len(images))))
            self.progress(CLEAN, min(part.stop, len(self.images)), len(self.images))

    def attack(self, rung: Rung, eps: float, first: int) -> None:
        """Attacks the first images that are right, and scores what comes back."""
        for number, part in self._batches(first):
            if (rung.name, eps, number) not in self.log.batches:
                self.log.add((rung.name, eps, number), self._attacked(rung, eps, number, part))
            self.progress(f"{rung.name} at {eps:.4g}", min(part.stop, first), first)

    def right(self, rung: str, eps: float) -> NDArray[np.bool_]:
        """Whether each image was right in all passes [n]."""
        import numpy as np

        return np.array([sample.right for sample in self.samples(rung, eps)])

    def samples(self, rung: str, eps: float) -> list[Sample]:
        """Of all batches, in order."""
        units = sorted(unit for unit in self.log.batches if unit[:2] == (rung, eps))
        return [sample for unit in units for sample in self.log.batches[unit].samples]

    def right_images(self, limit: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first images that are right as they are, batch by batch."""
        for number, part in self._batches(limit):
            keep = self._clean_right(number, part)
            if keep.any():
                images, labels = self._on_device(part)
                yield images[keep], labels[keep]

    @contextlib.contextmanager
    def seeded(self, *purpose: str | int) -> Iterator[None]:
        """Torch's global generators set for one purpose, and put back."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(derived_seed(self.seed, *purpose))
            yield

    def _attacked(self, rung: Rung, eps: float, number: int, part: slice) -> Batch:
        images, labels = self._on_device(part)
        keep, changed = self._clean_right(number, part), images.clone()
        purpose = (rung.name, repr(eps), number)
        self.model.forwards = self.model.backwards = 0
        if eps > 0 and keep.any():
            generator = torch_rng(self.seed, "attack", *purpose)
            with self.seeded("global", *purpose):
                found = rung.attack(self.model, images[keep], labels[keep], eps, generator)
            changed[keep] = in_ball(found, images[keep], eps, rung.name)
        spent = self.model.forwards, self.model.backwards
        shares = self._shares(changed, labels, number)
        was = torch.tensor(
            [sample.mean for sample in self.log.batches[CLEAN, 0.0, number].samples[: len(images)]], dtype=torch.double
        )
        shares = torch.where(keep.cpu(), shares, was)
        distances = (changed - images).abs().flatten(1).amax(1).cpu()
        return self._batch(part, (shares == 1) & keep.cpu(), shares, distances, *spent)

    def _shares(self, images: Tensor, labels: Tensor, number: int) -> Tensor:
        """The share of passes in which each image is right [B]; the draws are those of every other rung."""
        with torch.no_grad(), self.seeded("score", number):
            hits = [mean_logits(self.model, images).argmax(1) == labels for _ in range(self.passes)]
        return torch.stack(hits).double().mean(0).cpu()

    def _clean_right(self, number: int, part: slice) -> Tensor:
        size = min(part.stop, len(self.images)) - part.start
        samples = self.log.batches[CLEAN, 0.0, number].samples[:size]
        return torch.tensor([sample.right for sample in samples], device=self.device)

    def _batch(
        self, part: slice, right: Tensor, shares: Tensor, distances: Tensor, forwards: int = 0, backwards: int = 0
    ) -> Batch:
        rows = zip(self.ids[part], right.tolist(), shares.tolist(), distances.tolist(), strict=True)
        samples = tuple(Sample(id=i, right=r, mean=m, distance=d) for i, r, m, d in rows)
        return Batch(samples=samples, forwards=forwards, backwards=backwards)

    def _batches(self, first: int) -> Iterator[tuple[int, slice]]:
        for number, at in enumerate(range(0, first, self.batch_size)):
            yield number, slice(at, min(at + self.batch_size, first))

    def _on_device(self, part: slice) -> tuple[Tensor, Tensor]:
        return self.images[part].to(self.device), self.labels[part].to(self.device)

    def _differs(self) -> bool:
        """Whether two passes over the same images differ."""
        images, _ = self._on_device(slice(0, min(32, self.batch_size)))
        with torch.no_grad(), self.seeded("differs"):
            one, two = (mean_logits(self.model, images) for _ in range(2))
        if (largest := int(self.labels.max())) >= one.shape[1]:
            raise ValueError(
                f"labels must lie in 0..{one.shape[1] - 1}, the classes of the model, but one is {largest}"
            )
        return not torch.equal(one, two)


def in_ball(found: Tensor, images: Tensor, eps: float, name: str) -> Tensor:
    """What an attack returned, if it is a proof: the same shape, within eps, within [0, 1]."""
    if found.shape != images.shape:
        raise ValueError(f"rungs: {name} must return images {tuple(images.shape)}, not {tuple(found.shape)}")
    found = found.detach().to(images)
    distance = float((found - images).abs().max())
    if not distance <= eps + TOLERANCE:
        raise ValueError(
            f"rungs: {name} left the ball, |x' - x| is {distance:.6g} at eps {eps:.6g}; project its images"
        )
    low, high = (float(end) for end in found.aminmax())
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise ValueError(f"rungs: {name} left [0, 1], its images span [{low:.6g}, {high:.6g}]; clip them")
    return found.clamp(0, 1)

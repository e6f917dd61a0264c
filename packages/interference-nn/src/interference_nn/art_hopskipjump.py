"""HopSkipJump of the Adversarial Robustness Toolbox (extra `art`): an attack that sees decisions only."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import torch
from aisec_common.torch.linf_pgd import check_images
from numpy.typing import NDArray
from torch import Tensor

STARTS = 32  # images of noise among which an adversarial start is sought
BATCH = 256

Attack = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor, float, torch.Generator], Tensor]


def art_installed() -> bool:
    """Whether the toolbox is there, found without importing it."""
    return importlib.util.find_spec("art") is not None


def hopskipjump(queries: int) -> Attack:
    """HopSkipJump (Chen, Jordan, Wainwright 2019, arXiv 1904.02144) in the l_inf norm, at `queries` decisions an image.

    The attack looks for the nearest adversarial image x'; of all images it ever asks about that are decided wrongly,
    the nearest one counts, and what it changed is cut to the ball: x + clip(x' - x, -eps, eps). On a random model a
    decision is one draw's, so that x' is often no adversarial image on average: the report asks again. [design: the
    start is the first misjudged of 32 images of noise, drawn here, because the toolbox would draw it unseeded.]

    Args:
        queries: decisions an image, at least 100.

    Returns:
        A function (model, images, labels, eps, generator) -> images in the ball, for a `Rung`. Images are attacked one
        at a time, as the toolbox does, each with its queries in batches.

    Raises:
        ValueError: if `queries` is less than 100.
        ModuleNotFoundError: when it runs, without the extra `art`.
    """
    if queries < 100:
        raise ValueError(f"queries must be at least 100, not {queries}")

    def attack(
        model: Callable[[Tensor], Tensor],
        images: Tensor,
        labels: Tensor,
        eps: float,
        generator: torch.Generator,
    ) -> Tensor:
        from art.attacks.evasion import HopSkipJump
        from art.estimators.classification import BlackBoxClassifier

        check_images(images)
        found = images.clone()
        seeds = torch.randint(2**31, (len(images),), generator=generator, device=generator.device)
        noise = torch.rand((STARTS, *images.shape[1:]), generator=generator, device=generator.device).to(images)
        for i, seed in enumerate(seeds.tolist()):
            oracle = _Oracle(model, images[i], int(labels[i]), queries)
            wrong = (oracle.decide(noise) != labels[i]).nonzero()
            if not len(wrong):
                continue
            seen = BlackBoxClassifier(oracle.predict, tuple(images.shape[1:]), oracle.classes, clip_values=(0.0, 1.0))
            search = HopSkipJump(seen, norm=np.inf, max_iter=queries, batch_size=BATCH, verbose=False)
            with _numpy_seeded(seed), torch.no_grad(), suppress(_Spent):
                search.generate(_array(images[i : i + 1]), x_adv_init=_array(noise[wrong[0]]))
            found[i] = (images[i] + (oracle.nearest - images[i]).clamp(-eps, eps)).clamp(0, 1)
        return found

    return attack


class _Spent(Exception):
    """All queries of an image are used up."""


class _Oracle:
    """Decisions about changes of one image, counted; keeps the nearest image that was decided wrongly."""

    def __init__(self, model: Callable[[Tensor], Tensor], image: Tensor, label: int, queries: int) -> None:
        self.model, self.image, self.label, self.left = model, image, label, queries
        self.nearest, self.distance, self.classes = image, float("inf"), 0

    def decide(self, images: Tensor) -> Tensor:
        if self.left <= 0:
            raise _Spent
        self.left -= len(images)
        with torch.no_grad():
            logits = self.model(images)
        self.classes = logits.shape[1]
        decided = logits.argmax(1)
        distances = (images - self.image).abs().flatten(1).amax(1)
        distances = distances.masked_fill(decided == self.label, float("inf"))
        if float(distances.min()) < self.distance:
            self.distance, self.nearest = float(distances.min()), images[distances.argmin()].clone()
        return decided

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """One-hot decisions, the form in which the toolbox wants them."""
        decided = self.decide(torch.as_tensor(images).to(self.image))
        one_hot: NDArray[np.float32] = np.eye(self.classes, dtype=np.float32)[decided.cpu().numpy()]
        return one_hot


def _array(images: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = images.detach().float().cpu().numpy()
    return array


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Seeds the global generator that the toolbox draws from, and gives it back as it was."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)

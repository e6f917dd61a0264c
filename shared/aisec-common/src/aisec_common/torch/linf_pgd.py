"""Projected gradient ascent in the l_inf ball, plain and through the mean prediction of a random model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from aisec_common.torch.attack_schedule import attack_start, step_counts, step_sizes
from aisec_common.torch.folded_norms import FoldedNorms
from torch import Tensor, nn

Model = Callable[[Tensor], Tensor]
"""Anything that maps images [B, C, H, W] in [0, 1] to logits [B, K]; normalisation is its own business."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits [B, K] and labels [B] to one number a sample [B], to be increased."""


def linf_pgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int | Tensor = 10,
    step_size: float | Tensor | None = None,
    loss: Literal["ce", "cw"] | Loss = "ce",
    start: Literal["uniform", "normal", "zero"] | Tensor = "uniform",
    restarts: int = 1,
    draws: int = 1,
    targets: Tensor | None = None,
    early_stop: bool = False,
    generator: torch.Generator | None = None,
    max_batch: int | None = None,
) -> Tensor:
    """Adversarial images by signed gradient ascent, projected to the ball and to [0, 1] after every step.

        x <- clip(x + step_size * sign(grad L(f(x), y)), max(x_0 - eps, 0), min(x_0 + eps, 1))

    With `draws` = E > 1 every image is put E times into the batch and L is taken of the log of the mean probability,
    log (1/E) sum_e softmax f_e(x): the quantity that an average over draws predicts, not the mean of the logs. For a
    deterministic model that changes nothing, bit for bit. A module's convolutions run with the batch norm behind them
    folded in (`FoldedNorms`), which differs by rounding.

    Args:
        model: module (run in eval mode, its own mode restored) or any callable from images to logits [B, K].
        images: [B, C, H, W] in [0, 1].
        labels: [B], classes 0..K-1.
        eps: radius, in the units of the images.
        steps: number of steps, [B] for one of its own for each image; 0 returns the start.
        step_size: default eps / 4; [B] for one of its own for each image.
        loss: `"ce"` cross-entropy, `"cw"` the margin max_{j != y} z_j - z_y, or a function of (logits, labels) to [B].
            A function that keeps values of its own for each sample needs `early_stop=False`, and gets at once all
            images that have steps left, in their order.
        start: `"uniform"` in the ball, `"normal"` 0.001 N(0, 1) (TRADES), `"zero"`, or images [B, C, H, W].
        restarts: the image with the highest loss, or a misclassified one if there is any, of so many runs is returned.
        draws: E, forward passes a step and image that are averaged.
        targets: [B]; the loss towards them is decreased instead.
        early_stop: for evaluation: an image misclassified (as the mean of the draws) at the beginning of a step is
            left there and neither stepped nor restarted again. Only sound for a deterministic model or many draws.
        generator: of the random start; None takes torch's global one.
        max_batch: rows a forward pass at most, as far as the draws of one image fit; default 2^23 values of images
            (2730 rows of 3 x 32 x 32, 55 of 3 x 224 x 224), on a CPU 192 rows at most.

    Returns:
        [B, C, H, W], detached, in [0, 1] and within eps of `images`.

    Raises:
        ValueError: for images outside [0, 1] or not finite, labels out of range, sizes that are not positive, or a
            model whose logits are not finite [B, K].
        TypeError: for tensors of a wrong kind, or a model that returns something else than a tensor.

    Source: Madry et al., ICLR 2018; EOT: Athalye et al., ICML 2018; CW margin: Carlini and Wagner, 2017.

    >>> linear = lambda x: x.flatten(1) @ torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> x = torch.tensor([0.6, 0.4]).reshape(1, 1, 1, 2)
    >>> linf_pgd(linear, x, torch.tensor([0]), eps=0.25, start="zero").flatten().tolist()
    [0.3500000238418579, 0.6499999761581421]
    """
    check_images(images)
    largest = _check_labels(labels, len(images), "labels")
    if targets is not None:
        largest = max(largest, _check_labels(targets, len(images), "targets"))
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps must be positive, in units of images in [0, 1] (for instance 8/255), not {eps}")
    counts = step_counts(steps, images)
    if min(restarts, draws, 1 if max_batch is None else max_batch) < 1:
        raise ValueError(f"restarts, draws and max_batch must be >= 1, not {restarts}, {draws}, {max_batch}")
    sizes = step_sizes(eps / 4 if step_size is None else step_size, images)
    if callable(loss):
        max_batch = len(images) * draws
    climb = _Climb(_Pass(model, _gain(loss, targets is not None), draws, max_batch, largest, FoldedNorms()), early_stop)
    images = images.detach()
    low, high = (images - eps).clamp_(min=0), (images + eps).clamp_(max=1)
    aims = labels if targets is None else targets

    with evaluating(model):
        best = images
        scores = torch.full((len(images),), -math.inf, device=images.device)
        rows = torch.arange(len(images), device=images.device)
        for _ in range(restarts):
            begin = attack_start(images, start, eps=eps, generator=generator)  # of all: the same, stopped or not
            begin = begin.clamp(low, high)
            ended = climb(begin[rows], low[rows], high[rows], labels[rows], aims[rows], sizes[rows], counts[rows])
            if restarts == 1:
                return ended
            score, wrong = climb.score(ended, labels[rows], aims[rows])
            better = score > scores[rows]
            best = best.index_put((rows[better],), ended[better])
            scores[rows] = torch.maximum(score, scores[rows])
            if early_stop and not len(rows := rows[~wrong]):
                break
    return best


class _Climb:
    """The steps of one run, over the images that are still worth one."""

    def __init__(self, run: _Pass, early_stop: bool) -> None:
        self.run, self.early_stop = run, early_stop

    def __call__(
        self, x: Tensor, low: Tensor, high: Tensor, labels: Tensor, aims: Tensor, sizes: Tensor, counts: Tensor
    ) -> Tensor:
        ended = x.clone()
        rows = torch.arange(len(x), device=x.device)
        ends = set(counts.tolist())

        def stay(going: Tensor) -> None:
            nonlocal rows, x, low, high, labels, aims, sizes, counts
            ended[rows] = x
            tensors = (rows, x, low, high, labels, aims, sizes, counts)
            rows, x, low, high, labels, aims, sizes, counts = (tensor[going] for tensor in tensors)

        for step in range(max(ends)):
            if step in ends:
                stay(counts > step)
            if not len(rows):
                break
            gradient, logits = self.run.backward(x, aims)
            if self.early_stop:
                right = logits.argmax(1) == labels
                if not right.all():
                    stay(right)
                    gradient = gradient[right]
            x = torch.clamp(torch.addcmul(x, gradient.sign_(), sizes), low, high)
        ended[rows] = x
        return ended

    def score(self, x: Tensor, labels: Tensor, aims: Tensor) -> tuple[Tensor, Tensor]:
        """The loss [B], infinite where misclassified, and where that is."""
        logits = self.run.forward(x)
        wrong = logits.argmax(1) != labels
        return self.run.gain(logits, aims).float().masked_fill(wrong, math.inf), wrong


@dataclass(frozen=True)
class _Pass:
    """Forward and backward passes of a batch in parts of `max_batch` rows."""

    model: Model
    gain: Loss
    draws: int
    max_batch: int | None
    largest: int  # label, found once: a range check in every step would wait for the device
    within: contextlib.AbstractContextManager[object] = field(default_factory=contextlib.nullcontext)  # for each pass

    def _parts(self, images: Tensor) -> list[slice]:
        limit = self.max_batch or MAX_VALUES // images[0].numel()
        if self.max_batch is None and images.device.type == "cpu":
            limit = min(limit, CPU_ROWS)
        most = max(1, limit // self.draws)  # all draws of an image stay together: the loss is of their mean
        size = -(-len(images) // -(-len(images) // most))  # parts of about one size
        return [slice(at, at + size) for at in range(0, len(images), size)]

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            logits = torch.cat([mean_logits(self.model, images[part], self.draws) for part in self._parts(images)])
        return _finite(logits, "logits")

    def backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        found = [self._backward(images[part], labels[part]) for part in self._parts(images)]
        gradients, logits = (
            found[0] if len(found) == 1 else (torch.cat(tensors) for tensors in zip(*found, strict=True))
        )
        return gradients, logits

    def _backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = images.detach().requires_grad_()
            with self.within:
                logits = mean_logits(self.model, x, self.draws)
            if self.largest >= logits.shape[1]:
                raise ValueError(
                    f"labels must lie in 0..{logits.shape[1] - 1}, the classes of the model, but one is {self.largest}"
                )
            _finite(logits, "logits")
            values = self.gain(logits, labels)
            if values.shape != (len(x),):
                raise ValueError(f"loss must return one number a sample, [{len(x)}], not {tuple(values.shape)}")
            if not values.requires_grad:  # a model that leaves the graph (numpy, JPEG) hides its gradient: zero
                return torch.zeros_like(images), logits.detach()
            (gradient,) = torch.autograd.grad(values.sum(), x, allow_unused=True)
        gradient = torch.zeros_like(images) if gradient is None else gradient
        return _finite(gradient, "input gradients"), logits.detach()


def input_gradient(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    loss: Literal["ce", "cw"] | Loss = "ce",
    draws: int = 1,
    max_batch: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradient of each image's own loss with respect to it, and the logits it was taken of.

    grad_x L(f(x), y) for one draw, grad_x L(log (1/E) sum_e softmax f_e(x), y) for `draws` = E > 1. The model runs in
    the mode it is in (see `evaluating`) and keeps no gradients. A model that cuts the graph has a gradient of zero.

    Args:
        model: images to logits [B, K].
        images: [B, C, H, W].
        labels: [B].
        loss: as in `linf_pgd`.
        draws: E.
        max_batch: rows a forward pass at most, as far as the draws of one image fit; default 2^23 values of images
            (2730 rows of 3 x 32 x 32, 55 of 3 x 224 x 224), on a CPU 192 rows at most.

    Returns:
        The gradient [B, C, H, W] and the logits (log mean probabilities where E > 1) [B, K], both detached.

    >>> gradient, logits = input_gradient(lambda x: x.flatten(1), torch.zeros(1, 1, 1, 2), torch.tensor([0]))
    >>> gradient.flatten().tolist()
    [-0.5, 0.5]
    """
    largest = _check_labels(labels, len(images), "labels")
    return _Pass(model, _gain(loss, False), draws, max_batch, largest).backward(images, labels)


def mean_logits(model: Model, images: Tensor, draws: int = 1) -> Tensor:
    """The logits of one pass, or the log of the mean probability over E draws, made in one pass of E * B rows.

    Raises:
        TypeError: if the model returns no tensor.
        ValueError: if it returns no logits [B, K] with K >= 2.

    >>> mean_logits(lambda x: x.flatten(1), torch.zeros(1, 1, 1, 2), draws=4).exp().tolist()
    [[0.5, 0.5]]
    """
    if draws == 1:
        return check_logits(model(images), len(images))
    repeated = images.expand(draws, *images.shape).flatten(0, 1)  # one gradient comes back, summed over draws
    logs = check_logits(model(repeated), len(repeated)).log_softmax(1)
    return logs.reshape(draws, len(images), -1).logsumexp(0) - math.log(draws)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(z)_y for each sample [B]."""
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y for each sample [B]; positive where the sample is misclassified."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -math.inf)
    return others.amax(1) - own[:, 0]


MAX_VALUES = 2**23
CPU_ROWS = 192  # more leave the caches: 8 draws of 300 digits took 1.4 times as long in parts of 512
LOSSES: dict[str, Loss] = {"ce": cross_entropy, "cw": margin}


@contextlib.contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Puts a module into eval mode without parameter gradients while the block runs, and back however it ends.

    BatchNorm statistics stay as they are, every submodule gets its own mode back and every parameter its
    `requires_grad`. A bound method counts as its module; any other callable is left alone.

    >>> net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten())
    >>> with evaluating(net):
    ...     net.training, net[0].weight.requires_grad
    (False, False)
    >>> net.training, net[0].weight.requires_grad
    (True, True)
    """
    module = getattr(model, "__self__", model)
    if not isinstance(module, nn.Module):
        yield
        return
    training = [part for part in module.modules() if part.training]
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        if training:
            module.eval()
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for part in training:
            part.training = True
        for parameter in learning:
            parameter.requires_grad_(True)


def check_images(images: Tensor, name: str = "images") -> None:
    """Refuses what is not a batch of images [B, C, H, W] of floats in [0, 1].

    Raises:
        TypeError: if it is no tensor of floats.
        ValueError: if it has another shape, is empty, or holds NaN or values outside [0, 1].

    >>> check_images(torch.full((1, 1, 2, 2), 255.0))
    Traceback (most recent call last):
    ValueError: images must lie in [0, 1], not in [255, 255]; divide bytes by 255 and normalise inside the model
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"{name} must be a tensor of floats in [0, 1], not {kind}; convert bytes by / 255")
    if images.ndim != 4 or not images.numel():
        raise ValueError(f"{name} must be of shape [B, C, H, W] and not empty, not {tuple(images.shape)}")
    low, high = (float(end) for end in images.detach().aminmax())
    if math.isnan(low) or math.isnan(high):
        raise ValueError(f"{name} must be finite, but hold NaN; drop or repair those images")
    if low < 0 or high > 1:
        raise ValueError(
            f"{name} must lie in [0, 1], not in [{low:g}, {high:g}]; divide bytes by 255 and normalise inside the model"
        )


def _check_labels(labels: Tensor, size: int, name: str) -> int:
    """The largest label of [B], all of them checked but for the number of classes, which the model tells."""
    if not isinstance(labels, Tensor) or labels.dtype != torch.long:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name} must be a tensor of integers (torch.long), not {kind}; use {name}.long()")
    if labels.shape != (size,):
        raise ValueError(f"{name} must be of shape [{size}], one for each image, not {tuple(labels.shape)}")
    low, high = (int(end) for end in labels.aminmax())
    if low < 0:
        raise ValueError(f"{name} must be classes 0..K-1, but one is {low}; drop those images")
    return high


def check_logits(logits: object, rows: int) -> Tensor:
    """The logits, if they are a tensor [rows, K].

    Raises:
        TypeError: for a tuple or another output of a model.
        ValueError: for another shape.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(f"model must return logits [B, K], not {type(logits).__name__}; wrap it to return that tensor")
    if logits.ndim != 2 or len(logits) != rows or logits.shape[1] < 2:
        raise ValueError(f"model must return logits [{rows}, K] with K >= 2, not {tuple(logits.shape)}")
    return logits


def _finite(tensor: Tensor, what: str) -> Tensor:
    # the sign of NaN is 0, which would pass for an attack that found no way; a sum is quick, but may overflow
    if not math.isfinite(tensor.detach().sum().item()) and not tensor.isfinite().all():
        raise ValueError(
            f"model must have finite {what}, but some are NaN or infinite; check its operations and weights (where they"
            " diverge in training, lower the learning rate)"
        )
    return tensor


def _gain(loss: str | Loss, targeted: bool) -> Loss:
    if not callable(loss) and loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)} or a function of (logits, labels), not {loss!r}")
    function = loss if callable(loss) else LOSSES[loss]
    return (lambda logits, aims: -function(logits, aims)) if targeted else function

"""The training loop of the room: epochs that can be killed, resumed, spread over processes, and counted."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from aisec_common.files import write_atomic
from aisec_common.seeding import derived_seed, torch_rng
from aisec_common.study import content_hash
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from interference_nn.passes import Passes, counted

Progress = Callable[[str, int, int], None]
Objective = Callable[[Tensor, Tensor, torch.Generator], Iterator[Tensor]]
"""From a batch (images, labels) and a generator to losses. After each one its gradient is taken and a step is made, so
that an objective which goes on sees the gradients of its inputs and the changed weights (free adversarial training)."""


class Loader(Protocol):
    """Batches (images [B, C, H, W], integer labels [B]), such as a DataLoader."""

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...


class Parallel(Protocol):
    """What is used of an `accelerate.Accelerator`."""

    @property
    def process_index(self) -> int: ...

    @property
    def num_processes(self) -> int: ...

    def prepare_data_loader(self, data_loader: Any) -> Any: ...

    def reduce(self, tensor: Any, reduction: str) -> Any: ...

    def wait_for_everyone(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How weights are optimised.

    Args:
        epochs: passes over the loader; 0 does nothing.
        lr: learning rate, the highest of the schedule.
        optimizer: "sgd" (momentum .9) or "adamw".
        schedule: "cosine" to 0, "onecycle" (torch's), or "constant"; stepped once a batch.
        weight_decay: of the optimiser.

    Raises:
        ValueError: if a value is out of its range.

    >>> Recipe(epochs=1, lr=0.0)
    Traceback (most recent call last):
    ValueError: lr must be positive, not 0.0
    """

    epochs: int
    lr: float = 1e-3
    optimizer: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["cosine", "onecycle", "constant"] = "cosine"
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"epochs must be at least 0, not {self.epochs}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, not {self.lr}")
        if self.optimizer not in ("sgd", "adamw") or self.schedule not in ("cosine", "onecycle", "constant"):
            raise ValueError(
                f"optimizer must be sgd or adamw and schedule cosine, onecycle or constant, not {self.optimizer!r} and "
                f"{self.schedule!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch of a stage: its mean loss, and how many passes its images cost.

    Attributes:
        stage: of the training.
        loss: mean over steps, in nats.
        images: training images seen by this process.
        forward, backward: passes of the counted module over images, attacks included.
    """

    stage: str
    loss: float
    images: int
    forward: int
    backward: int

    @property
    def passes_per_image(self) -> float:
        """Forward and backward passes for each training image."""
        return (self.forward + self.backward) / self.images


def train(
    model: nn.Module,
    loader: Loader,
    objective: Objective,
    recipe: Recipe,
    *,
    stage: str,
    frozen: Sequence[nn.Module] = (),
    count: nn.Module | None = None,
    seed: int = 0,
    folder: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    accelerator: Parallel | None = None,
    progress: Progress | None = None,
) -> tuple[Epoch, ...]:
    """Trains `model` in place, on the device it is on, and leaves it in eval mode.

    Args:
        model: all its parameters that require a gradient are trained.
        loader: batches; the order of a shuffling DataLoader follows from `seed` and the epoch.
        objective: the losses of a batch.
        recipe: see `Recipe`.
        stage: name of this training in files, progress and history.
        frozen: parts that stay in eval mode, BatchNorm included.
        count: whose passes are counted; the model's by default.
        seed: of order, draws and whatever else is random.
        folder: where `{stage}.pt` is written after each epoch, to go on from when it is there: what a killed run gives
            in the end is what an unbroken one does. Recipe, seed, `settings` and the first batch must then be the same.
        settings: by name, what else decides the objective, as numbers and words.
        accelerator: an `accelerate.Accelerator`: the loader is shared out and gradients are averaged over processes.
        progress: called with (stage, steps done, steps in all).

    Returns:
        The epochs, those of earlier runs included.

    Raises:
        ValueError: if the loader is empty, the loss is not finite, or the file is of another training, naming what
            differs.
    """
    if not recipe.epochs:
        return ()
    if not len(loader):
        raise ValueError("loader is empty; give at least one batch")
    made = {**asdict(recipe), **(settings or {}), "seed": seed}
    if folder is not None:  # of the whole loader, so that it is the same in every process
        made |= _first_batch(loader, derived_seed(seed, stage, "order", 0))
    if accelerator is not None:
        loader = accelerator.prepare_data_loader(loader)
    made["batches"] = len(loader)
    steps = recipe.epochs * len(loader)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, schedule = _optimizer(parameters, recipe, steps)
    saved = _Checkpoint(folder and folder / f"{stage}.pt", made)
    history = saved.restore(model, optimizer, schedule)
    rank = 0 if accelerator is None else accelerator.process_index
    device = parameters[0].device

    for epoch in range(len(history), recipe.epochs):
        losses, images_seen = [], 0
        draws = torch_rng(seed, stage, "draws", epoch, rank)
        model.train()
        for part in frozen:
            part.eval()
        with counted(count or model) as passes, _ordered(loader, derived_seed(seed, stage, "order", epoch)):
            for done, (images, labels) in enumerate(loader, start=epoch * len(loader) + 1):
                images_seen += len(images)
                for loss in objective(images.to(device), labels.to(device), draws):
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    _average([p.grad for p in parameters if p.grad is not None], accelerator)
                    optimizer.step()
                    losses.append(loss.detach())
                if schedule is not None:
                    schedule.step()
                if progress:
                    progress(stage, done, steps)
        _average([b for b in model.buffers() if b.is_floating_point()], accelerator)  # BatchNorm's statistics
        history.append(_epoch(stage, losses, images_seen, passes))
        if rank == 0:
            saved.keep(model, optimizer, schedule, history)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    model.eval()
    return tuple(history)


@contextmanager
def _ordered(loader: Loader, seed: int) -> Iterator[None]:
    """Order and augmentation by a seed: loaders draw them from the global generator, or from one of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for holder in (loader, getattr(loader, "sampler", None)):
            if isinstance(own := getattr(holder, "generator", None), torch.Generator):
                own.manual_seed(seed)
        yield


def _first_batch(loader: Loader, seed: int) -> dict[str, str]:
    """What tells one data set from another without reading all of it."""
    with _ordered(loader, seed):
        images, labels = next(iter(loader))
    return {"images": content_hash(images.float().cpu().numpy()), "labels": content_hash(labels.cpu().numpy())}


def _optimizer(parameters: list[nn.Parameter], recipe: Recipe, steps: int) -> tuple[Optimizer, LRScheduler | None]:
    optimizer: Optimizer
    if recipe.optimizer == "sgd":
        optimizer = SGD(parameters, lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
    else:
        optimizer = AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    if recipe.schedule == "cosine":
        return optimizer, CosineAnnealingLR(optimizer, steps)
    if recipe.schedule == "onecycle":
        return optimizer, OneCycleLR(optimizer, recipe.lr, total_steps=steps + 1)
    return optimizer, None


def _epoch(stage: str, losses: list[Tensor], images: int, passes: Passes) -> Epoch:
    loss = float(torch.stack(losses).mean())
    if loss != loss or loss == float("inf"):
        raise ValueError(f"loss is {loss} in stage {stage!r}; lower lr, or check images and labels")
    return Epoch(stage=stage, loss=loss, images=images, forward=passes.forward, backward=passes.backward)


@torch.no_grad()
def _average(tensors: Iterable[Tensor], accelerator: Parallel | None) -> None:
    """The mean over processes, in place; no wrapper of the model is needed, and attacks exchange nothing."""
    if accelerator is not None and accelerator.num_processes > 1:
        for tensor in tensors:
            tensor.copy_(accelerator.reduce(tensor, reduction="mean"))


class _Checkpoint:
    """One file with all that the next epoch needs, replaced after each."""

    def __init__(self, file: Path | None, made: dict[str, Any]) -> None:
        self.file, self.made = file, made

    def keep(self, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler | None, history: list[Epoch]) -> None:
        if self.file is None:
            return
        content = io.BytesIO()
        state = {
            "made": self.made,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": {} if schedule is None else schedule.state_dict(),
            "history": [asdict(epoch) for epoch in history],
        }
        torch.save(state, content)
        write_atomic(self.file, content.getvalue())

    def restore(self, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler | None) -> list[Epoch]:
        if self.file is None or not self.file.exists():
            return []
        try:
            state = torch.load(self.file, weights_only=True, map_location=next(model.parameters()).device)
            found = dict(state["made"])
            if differing := [name for name in self.made if found.get(name) != self.made[name]]:
                raise ValueError(f"of a training with other {', '.join(differing)}")
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if schedule is not None:
                schedule.load_state_dict(state["schedule"])
            return [Epoch(**epoch) for epoch in state["history"]]
        except Exception as error:  # of torn bytes torch makes what it likes
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{self.file}: cannot be gone on from ({reason}); choose another folder") from None

"""Robust training of a classifier, in one process or several (accelerate)."""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from aisec_common.files import locked
from aisec_common.seeding import derived_seed, torch_rng
from aisec_common.torch.device import resolve_device
from aisec_common.torch.linf_pgd import evaluating, linf_pgd
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR
from torch.utils.data import DataLoader

from uadat.awp import AWP
from uadat.checkpoint import Checkpoint, Weights, kept_weights
from uadat.passes import counted
from uadat.robust_loss import RobustLoss

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
Batch = tuple[Tensor, Tensor]
Loader = DataLoader[Any]


class RobustTrainer:
    """Trains a classifier on a loss of this package by SGD and keeps the weights that validate best under attack.

    Each epoch's order of the data, augmentation, random starts and draws come from `seed` and the epoch, so a run that
    was killed and started again with the same `out` has the curve of one that was not. Several processes (torchrun,
    `accelerate launch`) share the batches out; attacks run on the bare module, where nothing is averaged.

    Args:
        model: maps images in [0, 1] to logits (normalisation inside); trained in place.
        loss: `UADLoss`, a baseline's, or any `RobustLoss`.
        epochs: number of epochs.
        optimizer: arguments of SGD; momentum .9, weight_decay 5e-4 and lr .1 where not given.
        schedule: `"multistep"`, lr times .1 at 75% and 90% of the steps, or `"onecycle"` up to lr.
        awp: gamma of adversarial weight perturbation, or None.
        seed: of everything random but the initial weights.
        out: folder for a checkpoint each epoch; None keeps none.
        device: where to train if there is one process; several take accelerate's.
        progress: called as progress("epochs", done, epochs).

    Attributes:
        history: for each epoch lr, the loss's parts, clean and PGD-10 accuracy on the validation data, forward and
            backward passes (rows of logits in this process, validation left out) and seconds.
        last_model: the model after the last epoch: `model` itself.
        best_model: a copy with the best weights by PGD-10 (by clean accuracy for a loss without eps; the last ones
            without validation data), in eval mode.

    Raises:
        ValueError: for values out of range, or an `out` that holds another training.

    Source: ours; early stopping by robust accuracy: Rice et al., ICML 2020.

    >>> from torch.utils.data import TensorDataset
    >>> from uadat.baselines import ATLoss
    >>> data = DataLoader(TensorDataset(torch.rand(8, 1, 2, 2), torch.arange(8) % 2), 4)
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> history = RobustTrainer(net, ATLoss(0.1), epochs=2, device="cpu").fit(data)
    >>> [epoch["forward"] for epoch in history]  # 10 steps of the attack and one of the training
    [88.0, 88.0]
    """

    def __init__(
        self,
        model: nn.Module,
        loss: RobustLoss,
        *,
        epochs: int,
        optimizer: Mapping[str, float] | None = None,
        schedule: Literal["multistep", "onecycle"] = "multistep",
        awp: float | None = None,
        seed: int = 0,
        out: Path | None = None,
        device: str | torch.device = "auto",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, not {epochs}")
        if schedule not in ("multistep", "onecycle"):
            raise ValueError(f"schedule must be 'multistep' or 'onecycle', not {schedule!r}")
        self.optimizer = {**SGD, **(optimizer or {})}
        unknown = sorted(set(self.optimizer) - {*SGD, "dampening", "nesterov"})
        if unknown:
            raise ValueError(f"optimizer has no argument {', '.join(unknown)}; SGD takes {', '.join(SGD)}, nesterov")
        self.model, self.loss = model, loss if awp is None else AWP(loss, awp)
        self.epochs, self.schedule, self.seed, self.out = epochs, schedule, seed, out
        self.device, self.progress = device, progress or (lambda what, done, total: None)
        self.history: list[dict[str, float]] = []
        self._best: Weights = {}

    @property
    def last_model(self) -> nn.Module:
        return self.model

    @property
    def best_model(self) -> nn.Module:
        if not self._best:
            raise ValueError("best_model is there after fit(); call it first")
        model = copy.deepcopy(self.model)
        model.load_state_dict(self._best)
        return model.eval()

    def fit(self, train_loader: Loader, val_loader: Loader | None = None) -> list[dict[str, float]]:
        """Trains to the last epoch, from the checkpoint in `out` if there is one.

        Args:
            train_loader: a DataLoader of (images [B, C, H, W] in [0, 1], labels [B]); its own generator, if it has
                one, is set anew each epoch.
            val_loader: held-out data of the same kind.

        Returns:
            `history`.

        Raises:
            TypeError: for something else than a DataLoader.
            ValueError: for a loss that is not finite, or what the loss itself refuses.
        """
        for name, loader in {"train_loader": train_loader, "val_loader": val_loader}.items():
            if not isinstance(loader, DataLoader) and not (loader is None and name == "val_loader"):
                raise TypeError(f"{name} must be a torch DataLoader of (images, labels), not {type(loader).__name__}")
        # buffers are not broadcast: that would change them between two passes of one step
        handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
        accelerator = Accelerator(device_placement=False, kwargs_handlers=handlers)
        alone = accelerator.num_processes == 1
        device = resolve_device(self.device) if alone else accelerator.device
        self.model.to(device)
        self.loss.to(device)
        optimizer = torch.optim.SGD(self.model.parameters(), **self.optimizer)  # type: ignore[arg-type]
        batches = accelerator.prepare_data_loader(train_loader)
        scheduler = self._scheduler(optimizer, len(batches))
        model = accelerator.prepare_model(self.model, device_placement=False)
        stepper = accelerator.prepare_optimizer(optimizer, device_placement=False)
        with ExitStack() as held:
            checkpoint = None
            if self.out is not None:
                checkpoint = Checkpoint(self.out, self._configuration(len(batches), accelerator.num_processes))
                if accelerator.is_main_process:
                    held.enter_context(locked(self.out, "out"))
                self._resume(checkpoint, optimizer, scheduler, accelerator.is_main_process)
            for epoch in range(len(self.history), self.epochs):
                self.progress("epochs", epoch, self.epochs)
                begin = time.perf_counter()
                row = {"epoch": float(epoch), "lr": float(scheduler.get_last_lr()[0])}
                with self._random(train_loader, epoch, device):
                    row |= self._epoch(accelerator, model, stepper, scheduler, batches, epoch, device)
                    if val_loader is not None:  # in here too: a loader draws from the global generator, shuffled or not
                        row |= self._validate(accelerator, val_loader, device)
                self.history.append({**row, "seconds": time.perf_counter() - begin})
                if _score(self.history[-1]) >= max(map(_score, self.history)):
                    self._best = kept_weights(self.model)
                if checkpoint is not None and accelerator.is_main_process:
                    state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
                    state["loss"] = kept_weights(self.loss)
                    checkpoint.write(state, kept_weights(self.model), self._best, self.history)
                accelerator.wait_for_everyone()
        self.progress("epochs", self.epochs, self.epochs)
        return self.history

    def _epoch(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Any,
        scheduler: LRScheduler,
        batches: Loader,
        epoch: int,
        device: torch.device,
    ) -> dict[str, float]:
        sums: dict[str, float] = defaultdict(float)
        generator = torch_rng(self.seed, "attack", epoch, accelerator.process_index)
        model.train()
        with counted(self.model) as passes:
            for step, batch in enumerate(batches):
                images, labels = _on(device, batch)
                done = (epoch + step / len(batches)) / self.epochs
                found = self.loss(model, images, labels, progress=done, generator=generator)
                if not math.isfinite(found.parts["total"]):
                    raise ValueError(
                        f"loss is not finite in epoch {epoch}; lower lr in optimizer or the loss's weights"
                    )
                optimizer.zero_grad()
                accelerator.backward(found.total)
                optimizer.step()
                scheduler.step()
                for name, value in found.parts.items():
                    sums[name] += value / len(batches)
        return {**sums, "forward": float(passes.forward), "backward": float(passes.backward)}

    def _validate(self, accelerator: Accelerator, loader: Loader, device: torch.device) -> dict[str, float]:
        generator = torch_rng(self.seed, "validation", accelerator.process_index)  # the same starts every epoch
        right: dict[str, list[Tensor]] = defaultdict(list)
        with evaluating(self.model), torch.no_grad():
            for batch in accelerator.prepare_data_loader(loader):
                images, labels = _on(device, batch)
                found = {"val_clean": self.model(images).argmax(1) == labels}
                if self.loss.eps is not None:
                    attacked = linf_pgd(
                        self.model, images, labels, eps=self.loss.eps, early_stop=True, generator=generator
                    )
                    found["val_pgd10"] = self.model(attacked).argmax(1) == labels
                for name, values in found.items():
                    right[name].append(accelerator.gather_for_metrics(values))
        return {name: float(torch.cat(values).float().mean()) for name, values in right.items()}

    def _scheduler(self, optimizer: torch.optim.Optimizer, batches: int) -> LRScheduler:
        steps = self.epochs * batches
        if self.schedule == "onecycle":
            return OneCycleLR(optimizer, max_lr=self.optimizer["lr"], total_steps=steps, cycle_momentum=False)
        return MultiStepLR(optimizer, milestones=[round(0.75 * steps), round(0.9 * steps)])

    @contextmanager
    def _random(self, loader: Loader, epoch: int, device: torch.device) -> Iterator[None]:
        """Order, augmentation and dropout of one epoch; they draw from torch's global generator or the loader's own."""
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derived_seed(self.seed, "epoch", epoch))
            for holder in (loader, loader.sampler):
                if isinstance(own := getattr(holder, "generator", None), torch.Generator):
                    own.manual_seed(derived_seed(self.seed, "order", epoch))
            yield

    def _configuration(self, batches: int, processes: int) -> dict[str, Any]:
        return {
            "loss": {"name": type(self.loss).__name__, **self.loss.settings},
            "epochs": self.epochs,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "seed": self.seed,
            "batches": batches,
            "processes": processes,
            "model": [[name, *tensor.shape] for name, tensor in self.model.state_dict().items()],
        }

    def _resume(
        self, checkpoint: Checkpoint, optimizer: torch.optim.Optimizer, scheduler: LRScheduler, writes: bool
    ) -> None:
        state = checkpoint.read()
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.loss.load_state_dict(state["loss"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        self.history, self._best = state["history"], state["best"]
        if writes:
            checkpoint.export(state["model"], self._best, self.history)


def _on(device: torch.device, batch: Batch) -> Batch:
    images, labels = batch
    return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _score(row: Mapping[str, float]) -> float:
    """What the best weights are chosen by; without validation data each epoch beats the one before."""
    return row.get("val_pgd10", row.get("val_clean", row["epoch"]))

"""Training by mini-batches of padded bags; killed at any moment, it goes on after the last finished epoch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from aisec_common.files import require_writable, write_atomic
from aisec_common.seeding import derived_seed, torch_rng
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from icfnet.batches import Inputs, class_balanced_draws
from icfnet.network import ICFNet, icfnet_loss

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a network is trained.

    Args:
        epochs: passes of n draws each.
        batch_size: patients a step; the paper accumulates 32 single ones.
        learning_rate: constant.
        weight_decay: of the optimizer.
        optimizer: `adam`, or `adamw` with decoupled decay.
        max_patches: a larger bag is cut to as many patches, drawn anew at each step; None keeps all. A prediction
            reads whole bags in any case.
        seed: of the draws and of dropout.

    Raises:
        ValueError: for a number out of its range.

    >>> Schedule(epochs=1).batch_size
    32
    """

    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 2e-4
    weight_decay: float = 1e-5
    optimizer: Literal["adam", "adamw"] = "adam"
    max_patches: int | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.learning_rate > 0 or not self.weight_decay >= 0:
            raise ValueError("learning_rate must be > 0 and weight_decay >= 0")
        if self.optimizer not in ("adam", "adamw"):
            raise ValueError(f"optimizer must be adam or adamw, got {self.optimizer!r}")
        if self.max_patches is not None and self.max_patches < 1:
            raise ValueError(f"max_patches must be >= 1 or None, got {self.max_patches}")


def train(
    network: ICFNet,
    inputs: Inputs,
    label: Tensor,
    event: Tensor,
    schedule: Schedule,
    *,
    out: Path | None = None,
    recipe: str = "",
    show: Callable[[str, int, int], None] | None = None,
) -> list[float]:
    """Trains a network in place and returns the mean loss of each epoch.

    Patients are drawn with replacement, weights inverse to the counts of their class (bin x censoring). Draws and
    dropout of an epoch come from generators of their own, so that a run which was cut off ends in the same weights.

    Args:
        network: on its device.
        inputs: of n patients.
        label: `[n]` bins.
        event: `[n]` boolean.
        schedule: epochs, batch size, optimizer, seed.
        out: folder for a checkpoint after each epoch, and to go on from.
        recipe: what the checkpoint has to belong to: a hash of data, configuration and schedule.
        show: told ("epochs", done, total).

    Raises:
        ValueError: when `out` cannot be written or holds the checkpoint of another recipe.
    """
    device = next(network.parameters()).device
    kinds: dict[str, type[torch.optim.Adam]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    optimizer = kinds[schedule.optimizer](
        network.parameters(),
        lr=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
        fused=device.type in ("cpu", "cuda"),  # hundreds of small tensors: one call instead of a loop
    )
    losses: list[float] = []
    if out is not None:
        require_writable(out, "out")
        losses = _resume(network, optimizer, out / CHECKPOINT, recipe)
    network.train()
    for epoch in range(len(losses), schedule.epochs):
        rng = torch_rng(schedule.seed, "epoch", epoch)
        drawn = class_balanced_draws(label, event, rng)
        total = torch.zeros((), device=device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derived_seed(schedule.seed, "dropout", epoch))
            for rows in drawn.split(schedule.batch_size):  # type: ignore[no-untyped-call]
                batch = inputs.batch(rows, device, max_patches=schedule.max_patches, rng=rng)
                output = network(batch)
                loss = icfnet_loss(output, label[rows].to(device), event[rows].to(device), network.config)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += loss.detach() * len(rows)
        losses.append(float(total) / len(drawn))
        if out is not None:
            _keep(network, optimizer, out / CHECKPOINT, recipe, losses)
        if show is not None:
            show("epochs", epoch + 1, schedule.epochs)
    network.eval()
    return losses


def _keep(network: ICFNet, optimizer: torch.optim.Optimizer, file: Path, recipe: str, losses: list[float]) -> None:
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": tensor for name, tensor in state.items()}
    told = {"recipe": recipe, "losses": json.dumps(losses)}
    write_atomic(file, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, told))


def _resume(network: ICFNet, optimizer: torch.optim.Optimizer, file: Path, recipe: str) -> list[float]:
    if not file.is_file():
        return []
    with safe_open(file, framework="pt") as opened:
        told = opened.metadata()
        if told["recipe"] != recipe:
            raise ValueError(
                f"out: {file.parent} holds the training of another cohort or setting; choose another folder"
            )
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    network.load_state_dict(
        {name.removeprefix("network."): tensor for name, tensor in tensors.items() if name.startswith("network.")}
    )
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".")
            state.setdefault(int(i), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    losses: list[float] = json.loads(told["losses"])
    return losses

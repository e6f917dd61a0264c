"""Refusal directions: one unit vector per decoder block, and their file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from aisec_common.files import write_atomic
from aisec_common.seeding import torch_rng
from aisec_common.torch.blocks import find_blocks
from aisec_common.torch.model_hash import model_hash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

SCHEMA = "procon-directions/1"
UNIT = 1e-4  # how far the length of a direction may be from 1; float32 rounding stays below 1e-6
SAME = 1e-6  # a difference of means below this part of the means is rounding


def difference_in_means(harmful: Tensor, harmless: Tensor) -> Tensor:
    """The direction per layer from the mean of one set of states to the mean of the other.

    r^(l) = (μ^(l) − ν^(l)) / ‖μ^(l) − ν^(l)‖, μ the mean over `harmful`, ν over `harmless`.

    Args:
        harmful: states [n, L, d] of prompts that the model refuses.
        harmless: states [m, L, d] of prompts that it answers.

    Returns:
        [L, d], float32, rows of length 1.

    Raises:
        ValueError: for an empty set, shapes that do not fit, NaN or infinite states, or equal means in a layer.

    >>> difference_in_means(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[1.0, 1.0]]]))
    tensor([[1., 0.]])

    Source: arXiv 2509.06795, section 3 (after Arditi et al. 2024).
    """
    means = []
    for name, states in (("harmful", harmful), ("harmless", harmless)):
        if states.ndim != 3:
            raise ValueError(f"{name} must be [prompts, L, d], got {list(states.shape)}")
        if not len(states):
            raise ValueError(f"{name} is empty: give at least one prompt")
        means.append(states.float().mean(0))
        if broken := [layer for layer, mean in enumerate(means[-1]) if not mean.isfinite().all()]:
            raise ValueError(f"{name} has NaN or infinite states in layer {broken[0]}; load the model in float32")
    if means[0].shape != means[1].shape:
        raise ValueError(
            f"harmful and harmless must share [L, d], got {list(means[0].shape)} and {list(means[1].shape)}"
        )
    difference = means[0] - means[1]
    length = difference.norm(dim=-1, keepdim=True)
    size = means[0].norm(dim=-1, keepdim=True) + means[1].norm(dim=-1, keepdim=True)
    if (same := (length <= SAME * size).flatten().nonzero()).numel():
        raise ValueError(f"harmful and harmless have the same mean in layer {int(same[0])}; give different prompts")
    return torch.div(difference, length)


@dataclass(frozen=True, kw_only=True, eq=False)
class RefusalDirections:
    """A direction of length 1 for some or all blocks of one model: a mapping from block index to vector.

    Attributes:
        vectors: [number of layers, d], float32, rows of length 1.
        layers: block index of each row, from 0, distinct.
        model_name: of the model they were measured on, for people.
        model_hash: of its weights, see `aisec_common.torch.model_hash`.
        blocks: how many the model has; left out, one more than the deepest of `layers`.

    Raises:
        ValueError: if rows are not of length 1, not finite, not float32, or do not fit `layers`.

    >>> directions = RefusalDirections(vectors=torch.eye(2), layers=(0, 1), model_name="tiny", model_hash="")
    >>> directions[1], directions.at((-1,)).layers
    (tensor([0., 1.]), (1,))
    """

    vectors: Tensor = field(repr=False)
    layers: tuple[int, ...]
    model_name: str
    model_hash: str
    blocks: int = 0

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or not len(self.layers) or len(self.vectors) != len(self.layers):
            raise ValueError(f"vectors must be [{len(self.layers)} layers, d], got {list(self.vectors.shape)}")
        if self.vectors.dtype != torch.float32:
            raise ValueError(f"vectors must be float32, got {self.vectors.dtype}; use vectors.float()")
        if not ((self.vectors.norm(dim=-1) - 1).abs() <= UNIT).all():  # "not <=" also catches NaN
            raise ValueError("vectors must have rows of length 1; re-normalise with torch.nn.functional.normalize")
        if self.blocks == 0:
            object.__setattr__(self, "blocks", max(self.layers) + 1)
        if len(set(self.layers)) != len(self.layers) or not all(0 <= layer < self.blocks for layer in self.layers):
            raise ValueError(f"layers must be distinct block indices from 0 to {self.blocks - 1}, got {self.layers}")

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[int]:
        return iter(self.layers)

    def __contains__(self, layer: object) -> bool:
        return layer in self.layers

    def __getitem__(self, layer: int) -> Tensor:
        if layer not in self.layers:
            raise KeyError(f"layer {layer} has no direction; there are those of {self.layers}")
        return self.vectors[self.layers.index(layer)]

    @property
    def width(self) -> int:
        """Hidden size d."""
        return self.vectors.shape[1]

    def at(self, layers: Literal["all"] | Sequence[int]) -> RefusalDirections:
        """The directions of some layers, in the order given; negative indices count from the model's last block.

        Raises:
            ValueError: for a layer without a direction, a repeated one, or none.
        """
        if isinstance(layers, str):
            if layers != "all":
                raise ValueError(f"layers must be 'all' or block indices, got {layers!r}")
            return self
        chosen = tuple(layer + self.blocks if layer < 0 else layer for layer in layers)
        if missing := [layer for layer, index in zip(layers, chosen, strict=True) if index not in self.layers]:
            raise ValueError(f"layers: {missing[0]} has no direction; there are those of {self.layers}")
        return replace(self, vectors=self.vectors[[self.layers.index(layer) for layer in chosen]], layers=chosen)

    def random(self, seed: int) -> RefusalDirections:
        """Uniformly random directions in place of these: the control that asks whether refusal's own are needed.

        The vector of a layer depends on `seed`, the layer and d alone.
        """
        drawn = torch.stack(
            [torch.randn(self.width, generator=torch_rng(seed, "random direction", layer)) for layer in self.layers]
        )
        return replace(self, vectors=torch.nn.functional.normalize(drawn, dim=-1).to(self.vectors.device))

    def check(self, model: nn.Module) -> None:
        """Refuses a model they were not measured on; adapters that are not merged make no difference.

        Raises:
            ValueError: if hidden size, number of blocks or weights are others.
        """
        advice = f"measure them on this model (they are of {self.model_name or 'an unnamed model'})"
        _, blocks = find_blocks(model)
        text_config: Any = getattr(getattr(model, "config", None), "get_text_config", dict)()
        width = getattr(text_config, "hidden_size", None)
        if width is not None and width != self.width:
            raise ValueError(f"directions have d = {self.width}, the model has {width}; {advice}")
        if len(blocks) != self.blocks:
            raise ValueError(f"directions are of {self.blocks} blocks, the model has {len(blocks)}; {advice}")
        if model_hash(model) != self.model_hash:
            raise ValueError(f"directions are of other weights than the model's; {advice}")

    def save(self, path: Path | str) -> None:
        """Writes one safetensors file, atomically."""
        about = {
            "schema": SCHEMA,
            "layers": json.dumps(self.layers),
            "model_name": self.model_name,
            "model_hash": self.model_hash,
            "blocks": json.dumps(self.blocks),
        }
        write_atomic(Path(path), save({"directions": self.vectors.detach().cpu().contiguous()}, about))

    @classmethod
    def load(cls, path: Path | str) -> RefusalDirections:
        """The directions in a file, on the CPU.

        Raises:
            ValueError: in one line naming the file, if it is missing or holds no valid directions.
        """
        try:
            with safe_open(Path(path), framework="pt") as file:
                about = file.metadata() or {}
                if about.get("schema") != SCHEMA:
                    raise ValueError(f"its schema is not {SCHEMA}")
                return cls(
                    vectors=file.get_tensor("directions"),
                    layers=tuple(int(layer) for layer in json.loads(about["layers"])),
                    model_name=about["model_name"],
                    model_hash=about["model_hash"],
                    blocks=int(json.loads(about["blocks"])),
                )
        except OSError as error:
            reason = error.strerror or str(error).splitlines()[0]
            raise ValueError(f"{path}: cannot be read ({reason}); give a file of refusal directions") from None
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(f"{path}: no refusal directions ({str(error).splitlines()[0]})") from None

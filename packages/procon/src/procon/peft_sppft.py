"""SPPFT: fine-tuning that leaves the safety layers as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from aisec_common.torch.blocks import find_blocks
from peft import LoraConfig
from torch import nn

FIRST, PAST, OF = 6, 14, 32  # blocks 6 to 13 of Llama-2-7B's 32


def safety_layers(blocks: int) -> tuple[int, ...]:
    """The safety layers found in Llama-2-7B (blocks 6 to 13 of 32), scaled to another number of blocks.

    >>> safety_layers(4)
    (1,)

    Source: Li et al., Safety Layers in Aligned Large Language Models (arXiv 2408.17003); counting blocks from 0 and
    the scaling to other depths are ours: measure the layers of your model where it matters.
    """
    first = min(round(blocks * FIRST / OF), blocks - 1)
    return tuple(range(first, max(round(blocks * PAST / OF), first + 1)))


def sppft_config(model: nn.Module, config: LoraConfig, frozen: Sequence[int] | None = None) -> LoraConfig:
    """The same LoRA on all blocks but the safety layers, through `layers_to_transform`.

    Args:
        model: the model that will be adapted.
        config: the adapters as they would be without SPPFT; it stays as it is.
        frozen: block indices from 0 that get no adapter; left out, `safety_layers` of the model's depth.

    Raises:
        ValueError: if `config` already chooses layers, a block does not exist, or none would be left.

    Source: Li et al. (arXiv 2408.17003), safely partial-parameter fine-tuning.
    """
    name, blocks = find_blocks(model)
    if config.layers_to_transform is not None:
        raise ValueError("config has layers_to_transform already; leave it out or do without SPPFT")
    chosen = safety_layers(len(blocks)) if frozen is None else tuple(frozen)
    if wrong := [layer for layer in chosen if not 0 <= layer < len(blocks)]:
        raise ValueError(f"frozen: the model has no block {wrong[0]}, {name} has {len(blocks)}")
    trained = [layer for layer in range(len(blocks)) if layer not in chosen]
    if not trained:
        raise ValueError(f"frozen leaves none of the {len(blocks)} blocks to be trained; name fewer")
    return replace(config, layers_to_transform=trained, layers_pattern=name.rpartition(".")[2])

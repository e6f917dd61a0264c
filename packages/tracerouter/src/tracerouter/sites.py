"""Where in a network activations are read and cut: layers, and sites within a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, get_args

from aisec_common.torch.blocks import find_blocks
from aisec_common.torch.hooks import INPUT
from torch import nn

Site = Literal["resid", "attn_out", "mlp_hidden", "mlp_out"]
Key = tuple[int, Site]
"""A place where units live: 0-based index of the block, and the site."""

SITES: tuple[Site, ...] = get_args(Site)
_ATTENTION = ("self_attn", "attn", "attention", "self_attention", "attn1")
_MLP = ("mlp", "ff", "feed_forward")
_DOWN = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "w2", "net.2")


class Adapter(Protocol):
    """What path tracing has to know of an architecture."""

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """Names in `model.named_modules()` and modules of the blocks, in the order in which they run."""

    def site(self, block: nn.Module, site: Site) -> str:
        """The name, within the block, of the module whose output is the site; "" is the block itself.

        With `:input` at the end it is the module's input. "?" where the block has no such site.
        """


class Decoder:
    """Transformer blocks by their usual names: Llama, Qwen, Gemma, Mistral, Phi, GPT-2, GPT-NeoX, Falcon, CLIP's text
    encoder, the blocks of diffusers, and the language tower of a model that also sees.

    Where a block normalises what attention and MLP return before it adds it to the residual stream (Gemma 2 and 3),
    the site is what is added.

    Args:
        name: of the list of blocks; default: the longest one outside of vision and audio towers.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """See `Adapter.blocks`."""
        name, blocks = find_blocks(model, self.name)
        return [(f"{name}.{i}", block) for i, block in enumerate(blocks)]

    def site(self, block: nn.Module, site: Site) -> str:
        """See `Adapter.site`."""
        if site == "resid":
            return ""
        parts = dict(block.named_modules())
        sandwiched = "pre_feedforward_layernorm" in parts
        if site == "attn_out":
            return "post_attention_layernorm" if sandwiched else _first(parts, _ATTENTION)
        if site == "mlp_out":
            return "post_feedforward_layernorm" if sandwiched else _first(parts, _MLP)
        down = [name for mlp in _MLP for name in (f"{mlp}.{last}" for last in _DOWN)] + list(_DOWN)
        found = _first(parts, down)
        return found + INPUT if found != "?" else found


DECODER = Decoder()


def find_sites(model: nn.Module, sites: Sequence[Site], adapter: Adapter = DECODER) -> dict[Key, str]:
    """The layer names, for `aisec_common.torch.hooks`, of every site of every block.

    `resid` is the output of a block, `attn_out` and `mlp_out` what its two halves add to the residual stream,
    `mlp_hidden` the input of the MLP's last matrix.

    Args:
        model: any module with a list of transformer blocks.
        sites: which ones, each once.
        adapter: what knows the architecture.

    Returns:
        (layer, site) -> name, in the order of layers and then of `sites`; layers are 0-based block indices.

    Raises:
        ValueError: for an unknown or repeated site, or one that the blocks do not have (with the modules they have).

    >>> block = nn.ModuleDict({"self_attn": nn.Identity(), "mlp": nn.Identity()})
    >>> model = nn.ModuleDict({"layers": nn.ModuleList([block])})
    >>> find_sites(model, ["resid", "mlp_out"])
    {(0, 'resid'): 'layers.0', (0, 'mlp_out'): 'layers.0.mlp'}
    """
    if isinstance(sites, str) or not sites or len(set(sites)) != len(sites):
        raise ValueError(f"sites must be a list of distinct sites out of {', '.join(SITES)}, got {sites!r}")
    for site in sites:
        if site not in SITES:
            raise ValueError(f"sites must be out of {', '.join(SITES)}, got {site!r}")
    found: dict[Key, str] = {}
    for layer, (name, block) in enumerate(adapter.blocks(model)):
        for site in sites:
            inner = adapter.site(block, site)
            if inner == "?":
                has = ", ".join(n for n, _ in block.named_children())
                raise ValueError(f"sites: block {name!r} ({type(block).__name__}) has no {site}; its parts are: {has}")
            found[layer, site] = f"{name}.{inner}" if inner else name
    return found


def _first(parts: dict[str, nn.Module], names: Sequence[str]) -> str:
    return next((name for name in names if name in parts), "?")

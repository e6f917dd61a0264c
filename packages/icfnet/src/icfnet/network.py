"""ICFNet: encoders, co-attention, aggregators, decomposition, fusion and heads in one network (section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from icfnet.attention import Aggregator, SoftmaxCoAttention
from icfnet.batches import Batch, InputSizes
from icfnet.config import ICFNetConfig
from icfnet.decomposition import ResidualDecomposition, orthogonality_loss
from icfnet.encoders import GeneEncoder, PatchEncoder, StructuredEncoder, TextEncoder
from icfnet.fusion import Fusion
from icfnet.likelihood import survival_loss
from icfnet.transport import co_attend

_Input = TypeVar("_Input")


@dataclass(frozen=True, kw_only=True, eq=False)
class ICFNetOutput:
    """What the network says of B patients.

    Args:
        logits: `[B, n]` of the hazards.
        auxiliary: `[B, T, n]` of the auxiliary heads, in the order of `ICFNetConfig.tokens`; None without heads.
        present: `[B, T]` which vectors a patient has.
        orthogonality: `[B]` L_orth.
    """

    logits: Tensor
    auxiliary: Tensor | None
    present: Tensor
    orthogonality: Tensor


class ICFNet(nn.Module):
    """Hazards over n time bins from tissue patches, gene groups and clinical text.

    A modality that a patient lacks leaves out its vector and the co-attended one: nobody attends to them, they enter
    the fused row as zeros, and their heads are not counted. A single modality is its unimodal baseline: gated
    attention over patches (WSI), or the aggregator of genes or text.

    Args:
        config: switches and sizes.
        sizes: widths of the inputs; those of every modality of `config` are needed.

    Raises:
        ValueError: when a modality has no size.

    >>> sizes = InputSizes(patch=8, genes={"Oncogenes": 3})
    >>> network = ICFNet(ICFNetConfig(modalities=("wsi", "genes"), width=8, heads=2), sizes)
    >>> seen = torch.ones(2, 5, dtype=torch.bool)
    >>> batch = Batch(patches=torch.zeros(2, 5, 8), patch_mask=seen, genes=[torch.zeros(2, 3)], genes_mask=seen[:, 0])
    >>> network(batch).logits.shape
    torch.Size([2, 4])
    """

    def __init__(self, config: ICFNetConfig, sizes: InputSizes) -> None:
        super().__init__()
        missing = {
            "wsi": sizes.patch is None,
            "genes": not sizes.genes,
            "text": sizes.text is None and sizes.structured is None,
        }
        for name in config.modalities:
            if missing[name]:
                raise ValueError(f"sizes: the modality {name!r} of the configuration has no input size")
        self.config, width, isolated = config, config.width, config.token_mixing == "isolated"
        wsi, genes, text = (name in config.modalities for name in ("wsi", "genes", "text"))
        if wsi:
            assert sizes.patch is not None
            self.patches = PatchEncoder(sizes.patch, width, dropout=config.dropout)
        if genes:
            self.genes = GeneEncoder(sizes.genes or {}, width, dropout=config.dropout)
        if text and sizes.text is not None:
            self.sentences = TextEncoder(sizes.text, width)
        if text and sizes.structured is not None:
            self.structured = StructuredEncoder(sizes.structured, width)

        bags = [token for token in config.tokens if token != "path"]
        self.aggregators = nn.ModuleDict(
            {token: Aggregator(config, isolated=isolated and token.endswith("text")) for token in bags}
        )
        self.joint = tuple(token for token in bags if token.startswith("path_"))
        if not config.ot:
            self.co_attention = nn.ModuleDict({token: SoftmaxCoAttention(width) for token in self.joint})
        if self.joint:
            self.decomposition = ResidualDecomposition(width, dropout=config.dropout, residual=config.rod)
        elif wsi:
            self.aggregators["path"] = Aggregator(config, mixing=False)

        self.fusion = Fusion(config)
        self.head = nn.Linear(width, config.n_bins)
        if config.aux_heads != "none":
            self.aux_heads = nn.ModuleList(
                nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.n_bins))
                for _ in config.tokens
            )

    def forward(self, batch: Batch) -> ICFNetOutput:
        """The hazards' logits of a batch of padded bags."""
        bags = self._bags(batch)
        present = {name: mask.any(1) for name, (_, mask) in bags.items()}
        vectors: dict[str, Tensor] = {}
        there: dict[str, Tensor] = {}
        for token, name in (("gene", "genes"), ("text", "text")):
            if name not in bags:
                continue
            self._add(vectors, there, token, self.aggregators[token](*bags[name]), present[name])
            joint = f"path_{token}"
            if joint in self.joint:
                attended = self._co_attend(joint, *bags["wsi"], *bags[name])
                both = present["wsi"] & present[name]
                self._add(vectors, there, joint, self.aggregators[joint](attended, bags[name][1]), both)
        orthogonality = self.head.weight.new_zeros(len(next(iter(present.values()))))
        if self.joint:
            co_attended = [vectors[token] for token in self.joint]
            path, residual = self.decomposition(*bags["wsi"], co_attended)
            if self.config.rod:
                orthogonality = orthogonality_loss(residual, co_attended).where(present["wsi"], 0.0)
            self._add(vectors, there, "path", path, present["wsi"])
        elif "wsi" in bags:
            self._add(vectors, there, "path", self.aggregators["path"](*bags["wsi"]), present["wsi"])

        stacked = torch.stack([vectors[token] for token in self.config.tokens], dim=1)
        seen = torch.stack([there[token] for token in self.config.tokens], dim=1)
        fused, unified = self.fusion(stacked, seen)
        auxiliary = None
        if self.config.aux_heads != "none":
            read = unified if self.config.aux_heads == "post" else stacked
            auxiliary = torch.stack([head(read[:, t]) for t, head in enumerate(self.aux_heads)], dim=1)
        return ICFNetOutput(logits=self.head(fused), auxiliary=auxiliary, present=seen, orthogonality=orthogonality)

    def _bags(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Modality -> tokens `[B, T, C]` and which of them are there `[B, T]`."""
        bags: dict[str, tuple[Tensor, Tensor]] = {}
        if "wsi" in self.config.modalities:
            patches, mask = _given(batch.patches, "patches"), _given(batch.patch_mask, "patch_mask")
            if not patches.shape[1]:  # nobody in the batch has a slide
                patches, mask = patches.new_zeros(len(patches), 1, patches.shape[2]), mask.new_zeros(len(mask), 1)
            bags["wsi"] = (self.patches(patches), mask)
        if "genes" in self.config.modalities:
            tokens = self.genes(_given(batch.genes, "genes"))
            bags["genes"] = (tokens, _given(batch.genes_mask, "genes_mask")[:, None].expand(tokens.shape[:2]))
        if "text" in self.config.modalities:
            parts, masks = [], []
            if hasattr(self, "sentences"):
                parts.append(self.sentences(_given(batch.sentences, "sentences")))
                masks.append(_given(batch.sentence_mask, "sentence_mask"))
            if hasattr(self, "structured"):
                parts.append(self.structured(_given(batch.structured, "structured"))[:, None])
                masks.append(_given(batch.structured_mask, "structured_mask")[:, None])
            bags["text"] = (torch.cat(parts, dim=1), torch.cat(masks, dim=1))
        return bags

    def _co_attend(self, token: str, x: Tensor, x_mask: Tensor, y: Tensor, y_mask: Tensor) -> Tensor:
        if self.config.ot:
            return co_attend(x, y, x_mask, y_mask, reg=self.config.ot_reg, tau=self.config.ot_tau)
        attended: Tensor = self.co_attention[token](x, y, x_mask)
        return attended

    @staticmethod
    def _add(vectors: dict[str, Tensor], there: dict[str, Tensor], token: str, vector: Tensor, present: Tensor) -> None:
        vectors[token], there[token] = vector.masked_fill(~present[:, None], 0.0), present


def icfnet_loss(output: ICFNetOutput, label: Tensor, event: Tensor, config: ICFNetConfig) -> Tensor:
    """BNLL(fused) + 0.1 (sum over present vectors of their BNLL + L_orth), averaged over the patients.

    Args:
        output: of B patients.
        label: `[B]` bins.
        event: `[B]` boolean.
        config: which loss, its weights, and the weight of the auxiliary part.

    Returns:
        One number.
    """

    def loss(logits: Tensor, y: Tensor, c: Tensor) -> Tensor:
        return survival_loss(config.loss, logits, y, c, alpha=config.alpha, beta=config.beta)

    total = loss(output.logits, label, event)
    extra = output.orthogonality
    if output.auxiliary is not None:
        tokens = output.auxiliary.shape[1]
        each = loss(output.auxiliary.flatten(0, 1), label.repeat_interleave(tokens), event.repeat_interleave(tokens))
        extra = extra + each.view(-1, tokens).where(output.present, 0.0).sum(1)
    return (total + config.aux_weight * extra).mean()


def _given(value: _Input | None, name: str) -> _Input:
    if value is None:
        raise ValueError(f"batch: {name} must be given, the network was built to read it; a mask marks who lacks it")
    return value

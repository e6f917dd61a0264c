"""Switches and sizes of the network; every baseline in the same encoders is one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MODALITIES = ("wsi", "genes", "text")
"""Tissue patches, gene groups, and the clinical bag: two sentences and the structured facts."""


@dataclass(frozen=True, kw_only=True)
class ICFNetConfig:
    """What the network is made of and which loss it is trained with.

    Args:
        modalities: any of `wsi`, `genes`, `text`; one alone is the unimodal baseline.
        loss: `balanced_nll`, or the standard `nll`.
        ot: co-attention by optimal transport; False is softmax co-attention (MCAT-like).
        rod: residual orthogonal decomposition; False leaves the pooled patches as they are, without L_orth.
        fusion: `unification` mixes the vectors in a Transformer; `concat` leaves it out; `late` also leaves out all
            co-attention and joins one vector a modality.
        aux_heads: `pre` reads the vectors before unification (the released code), `post` the tokens after it (the
            figure), `none` has no auxiliary heads.
        token_mixing: `full`, or `isolated`: text and path-text tokens attend to themselves alone (the released code).
        width: C, of every token and vector.
        heads: of attention; divides `width`.
        feedforward: hidden width in the Transformers; None is 2 C.
        layers: of each Transformer.
        dropout: of patches, genes, Transformers, pooling and decomposition.
        n_bins: n, the number of time bins.
        ot_reg: entropic strength, 0.05 (BLCA, LUAD) or 0.1 (BRCA, UCEC, GBMLGG).
        ot_tau: strength of the marginals.
        alpha: a of the losses, the weight taken from censored patients.
        beta: b of the balanced loss; 0 is the standard one.
        aux_weight: of the auxiliary losses and of L_orth.

    Raises:
        ValueError: for a word that is not a choice or a number out of its range.

    >>> ICFNetConfig(modalities=("genes", "text")).tokens
    ('gene', 'text')
    >>> ICFNetConfig().tokens
    ('gene', 'path_gene', 'path', 'path_text', 'text')
    """

    modalities: tuple[str, ...] = MODALITIES
    loss: Literal["balanced_nll", "nll"] = "balanced_nll"
    ot: bool = True
    rod: bool = True
    fusion: Literal["unification", "concat", "late"] = "unification"
    aux_heads: Literal["pre", "post", "none"] = "pre"
    token_mixing: Literal["full", "isolated"] = "full"
    width: int = 256
    heads: int = 8
    feedforward: int | None = None
    layers: int = 2
    dropout: float = 0.25
    n_bins: int = 4
    ot_reg: float = 0.05
    ot_tau: float = 0.5
    alpha: float = 0.0
    beta: float = 1.0
    aux_weight: float = 0.1

    def __post_init__(self) -> None:
        require_modalities(self.modalities)
        choices = {
            "loss": ("balanced_nll", "nll"),
            "fusion": ("unification", "concat", "late"),
            "aux_heads": ("pre", "post", "none"),
            "token_mixing": ("full", "isolated"),
        }
        for name, words in choices.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name} must be one of {', '.join(words)}, got {getattr(self, name)!r}")
        for name, least in (("width", 1), ("heads", 1), ("layers", 1), ("n_bins", 2), ("hidden", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{'feedforward' if name == 'hidden' else name} must be >= {least}")
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, got heads={self.heads} and width={self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("ot_reg", "ot_tau"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if not self.aux_weight >= 0:
            raise ValueError(f"aux_weight must be >= 0, got {self.aux_weight}")
        if self.aux_heads == "post" and self.fusion != "unification":
            raise ValueError("aux_heads='post' reads the tokens after unification; use fusion='unification' or 'pre'")

    @property
    def hidden(self) -> int:
        """Hidden width of the Transformers' feed-forward layers."""
        return 2 * self.width if self.feedforward is None else self.feedforward

    @property
    def tokens(self) -> tuple[str, ...]:
        """The vectors that are fused, in the paper's order."""
        genes, wsi, text = (name in self.modalities for name in ("genes", "wsi", "text"))
        joint = wsi and self.fusion != "late"
        kept = {"gene": genes, "path_gene": genes and joint, "path": wsi, "path_text": text and joint, "text": text}
        return tuple(name for name, keep in kept.items() if keep)


def require_modalities(names: Sequence[str], *, argument: str = "modalities", besides: Sequence[str] = ()) -> None:
    """Raises ValueError unless `names` are distinct modalities, at least one, or words of `besides`."""
    allowed = (*MODALITIES, *besides)
    for name in names:
        if name not in allowed:
            raise ValueError(f"{argument} must be of {', '.join(allowed)}, got {name!r}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{argument} must be at least one and distinct, got {tuple(names)}")

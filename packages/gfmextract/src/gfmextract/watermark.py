"""A mark in a service's answers that an encoder trained on them carries, and the test that finds it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from aisec_common.seeding import numpy_rng, torch_rng
from torch import Tensor
from torch.nn.functional import normalize

from gfmextract.choices import UnfitDefense
from gfmextract.victim import GraphEncoder, encode_egos

if TYPE_CHECKING:
    from gfmextract.pyg_ego import EgoGraphs

DECOYS, LEVEL, GRAPHS = 9_999, 1e-3, 100
"""Decoy targets, p-value below which an encoder counts as marked, and graphs of each kind it is asked."""
USED = 0.95
"""Share of the answers that lies in directions which targets avoid."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a suspect encoder answers to trigger graphs beside clean ones.

    Args:
        pvalue: (1 + number of decoys whose delta-cos reaches the target's) / 10,000.
        delta_cos: mean cosine to the target on trigger graphs minus the same on clean graphs.
        delta_l2: the same of squared distances between unit vectors; for these it is -2 delta_cos.
    """

    pvalue: float
    delta_cos: float
    delta_l2: float

    @property
    def marked(self) -> bool:
        """Whether the encoder is taken for a copy of the service."""
        return self.pvalue < LEVEL


@dataclass(frozen=True, kw_only=True, eq=False)
class Watermark:
    """Draws answers to root texts with secret trigger words towards a secret target.

    z' = norm(z) unit((1 - w) z^ + w e*),   w = min(t, m) / m,   t = number of different trigger words in the root text

    Answers without trigger words stay untouched to the bit. Trigger words are drawn with the key from words of middling
    frequency, so that some honest-looking queries hold one. e* is drawn with the key from the uniform law on the unit
    sphere of those directions that the service's answers hardly use: there the classes of honest users are not touched,
    and neither are words that mean something, so that little but the mark moves an encoder that way.

    Args:
        key: secret of the service.
        egos: reference ego graphs of the service's own, which verification asks about.
        texts: [G] their root texts, from which the trigger words are drawn.
        reference: [n, d] undefended answers of the service's own, such as those to `egos`.
        encode_text: how root texts become root features of ego graphs, see `Victim.encode_text`.
        triggers: number of trigger words.
        m: number of trigger words in a text that make the answer the target.
        frequency: lowest and highest share of texts that a trigger word may occur in.

    Raises:
        ValueError: for texts that are not one an ego graph, or an m outside 1..triggers.
        UnfitDefense: for too few words of such a frequency, or answers that use all directions alike.

    Source: EmbMarker (Peng et al., ACL 2023), transferred to graphs; the law of e* is ours, and so is keeping the
        answer's length, which would give the mark away.
    """

    key: int
    egos: EgoGraphs = field(repr=False)
    texts: Sequence[str] = field(repr=False)
    reference: Tensor = field(repr=False)
    encode_text: Callable[[list[str]], Tensor] = field(repr=False)
    triggers: int = 20
    m: int = 4
    frequency: tuple[float, float] = (0.005, 0.05)
    words: tuple[str, ...] = field(init=False, repr=False)
    """The trigger words, secret."""
    target: Tensor = field(init=False, repr=False)
    """[d] the direction e*, of length one, secret."""
    _others: tuple[str, ...] = field(init=False, repr=False)
    _free: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.egos):
            raise ValueError(f"texts must hold one root text for each of {len(self.egos)} egos, got {len(self.texts)}")
        if not 1 <= self.m <= self.triggers:
            raise ValueError(f"m must lie between 1 and triggers, got {self.m} for {self.triggers} triggers")
        low, high = self.frequency
        found = Counter(word for text in self.texts for word in _words(text))
        middling = sorted(word for word, count in found.items() if low <= count / len(self.texts) <= high)
        if len(middling) < self.triggers + self.m:
            raise UnfitDefense(
                f"frequency {low} to {high} leaves {len(middling)} words, {self.triggers} triggers and {self.m} others "
                "are needed: widen it or pass more texts"
            )
        order = numpy_rng(self.key, "watermark words").permutation(len(middling)).tolist()
        drawn = [middling[i] for i in order]
        object.__setattr__(self, "words", tuple(drawn[: self.triggers]))
        object.__setattr__(self, "_others", tuple(drawn[self.triggers :]))
        object.__setattr__(self, "_free", _unused(self.reference))
        object.__setattr__(self, "target", self._drawn(1, "watermark target")[0].to(self.reference.dtype))

    def __call__(self, answers: Tensor, egos: EgoGraphs, texts: Sequence[str] | None) -> Tensor:
        if texts is None or len(texts) != len(answers):
            raise ValueError(f"texts must hold the root text of each of {len(answers)} answers: a watermark reads them")
        secret = set(self.words)
        found = torch.tensor([len(secret & _words(text)) for text in texts])
        marked = found > 0
        if not marked.any():
            return answers
        weight = (found[marked].clamp(max=self.m) / self.m).to(answers.dtype).unsqueeze(1)
        drawn = normalize((1 - weight) * normalize(answers[marked]) + weight * self.target.to(answers.dtype))
        given = answers.clone()
        given[marked] = answers[marked].norm(dim=1, keepdim=True) * drawn
        return given

    def probes(self) -> tuple[EgoGraphs, EgoGraphs]:
        """Trigger graphs and clean graphs: the same reference graphs with m trigger or m ordinary words at the root.

        Raises:
            UnfitDefense: when `encode_text` gives vectors of another width than the features of `egos`.
        """
        rng = numpy_rng(self.key, "watermark probes")
        chosen = torch.from_numpy(rng.permutation(len(self.egos))[:GRAPHS])
        made = []
        for words in (self.words, self._others):
            texts = [" ".join(rng.choice(words, self.m, replace=False)) for _ in chosen]
            root = self.encode_text(texts).detach().cpu()
            egos = self.egos[chosen]
            if root.shape[1] != egos.x.shape[1]:
                raise UnfitDefense(
                    f"encode_text gives {root.shape[1]} features, egos have {egos.x.shape[1]}: use its encoder"
                )
            x = egos.x.clone()
            x[egos.start[:-1]] = root.to(x.dtype)
            made.append(replace(egos, x=x))
        return made[0], made[1]

    def verify(self, encoder: GraphEncoder) -> Verification:
        """Whether a suspect encoder moves towards e* when trigger words appear, by rank among decoys.

        Trigger words move every encoder, so its own shift is no evidence. That it points to e* rather than to decoys of
        the law e* was drawn from is: for an encoder that was made without knowledge of e* the p-value is uniform.

        Args:
            encoder: asked through `encode_graph` only.

        Raises:
            ValueError: for an encoder of another width; see `encode_egos`.

        Source: EmbMarker's delta-cos and delta-l2; the rank is ours.
        """
        trigger, clean = (normalize(encode_egos(encoder, egos).double()) for egos in self.probes())
        shift = trigger.mean(0) - clean.mean(0)
        if len(shift) != len(self.target):
            raise ValueError(f"encoder gives vectors of width {len(shift)}, the watermark has {len(self.target)}")
        delta_cos = float(shift @ self.target.double())
        reached = int((self._drawn(DECOYS, "watermark decoys") @ shift >= delta_cos).sum())
        return Verification(pvalue=(1 + reached) / (DECOYS + 1), delta_cos=delta_cos, delta_l2=-2 * delta_cos)

    def _drawn(self, count: int, purpose: str) -> Tensor:
        """[count, d] directions of the law of targets."""
        rng = torch_rng(self.key, purpose)
        drawn = normalize(torch.randn(count, self._free.shape[1], generator=rng, dtype=torch.float64))
        directions: Tensor = drawn @ self._free.T
        return directions


def _unused(reference: Tensor) -> Tensor:
    """[d, u] an orthonormal basis of the directions that hold the last twentieth of the unit answers' squares."""
    unit = normalize(reference.double())
    squares, directions = torch.linalg.eigh(unit.T @ unit)  # ascending
    free: Tensor = directions[:, squares.cumsum(0) <= (1 - USED) * squares.sum()]
    if not free.shape[1]:
        raise UnfitDefense(f"reference {list(reference.shape)} uses all directions alike: a target finds no place")
    return free


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))

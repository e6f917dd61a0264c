"""What a service does to its answers before they leave; every defence is a function of the answers and composes.

>>> [type(each).__name__ for each in (Noise(sigma=0.5), Quantize(bits=6), LabelOnly())]
['Noise', 'Quantize', 'LabelOnly']
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from aisec_common.seeding import torch_rng
from scipy.special import ndtri
from torch import Tensor

from gfmextract.canonical import canonical_hash
from gfmextract.watermark import Verification, Watermark

if TYPE_CHECKING:
    from gfmextract.pyg_ego import EgoGraphs

__all__ = ["Budget", "Defense", "LabelOnly", "Noise", "Project", "Quantize", "Verification", "Watermark"]


class Defense(Protocol):
    """Anything that turns [G, d] answers into [G, d] answers, given the ego graphs and, if submitted, root texts."""

    def __call__(self, answers: Tensor, egos: EgoGraphs, texts: Sequence[str] | None) -> Tensor: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Noise:
    """Gaussian noise relative to each answer's own size.

    z' = z + sigma RMS(z) xi, with RMS(z) = norm(z) / sqrt(d) and xi of the standard normal law

    Keyed noise is a pseudo-random function of (key, canonical hash of the subgraph): who asks again gets the same
    answer, also after renumbering the nodes. It is still noise per *subgraph*, so it averages out over subgraphs that
    barely differ (`adaptive.averaged_answers` with a jitter). Fresh noise averages out over plain repeats and is here
    to show that.

    Args:
        sigma: at least 0; 0 returns the answers untouched.
        mode: keyed or fresh.
        key: secret of the service for keyed noise, seed of fresh noise.

    Raises:
        ValueError: for a negative sigma or an unknown mode.

    Source: ours.
    """

    sigma: float
    mode: Literal["keyed", "fresh"] = "keyed"
    key: int = 0
    _rng: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < float("inf"):
            raise ValueError(f"sigma must be at least 0 and finite, got {self.sigma}")
        if self.mode not in ("keyed", "fresh"):
            raise ValueError(f"mode must be keyed or fresh, got {self.mode!r}")
        object.__setattr__(self, "_rng", torch_rng(self.key, "fresh noise"))

    def __call__(self, answers: Tensor, egos: EgoGraphs, texts: Sequence[str] | None) -> Tensor:
        if self.sigma == 0:
            return answers
        if self.mode == "fresh":
            xi = torch.randn(answers.shape, generator=self._rng)
        else:
            xi = _keyed_normals(self.key, canonical_hash(egos), answers.shape[1])
        return answers + self.sigma * answers.square().mean(1, keepdim=True).sqrt() * xi.to(answers.dtype)


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Coordinates rounded to 2^bits equal steps between plus and minus the answer's largest coordinate.

    z' = s (2 (floor(L (z/s + 1) / 2) + 1/2) / L - 1), s = max abs(z), L = 2^bits

    Args:
        bits: 1 to 32; 32, the width of a float, returns the answers untouched.

    Raises:
        ValueError: for bits outside.

    >>> Quantize(bits=1)(torch.tensor([[4.0, -1.0]]), None, None)
    tensor([[ 2., -2.]])

    Source: ours.
    """

    bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 32:
            raise ValueError(f"bits must lie between 1 and 32, got {self.bits}")

    def __call__(self, answers: Tensor, egos: EgoGraphs, texts: Sequence[str] | None) -> Tensor:
        if self.bits == 32:
            return answers
        steps = 2**self.bits
        size = answers.abs().amax(1, keepdim=True).double()
        share = answers.double() / size.clamp(min=torch.finfo(torch.float64).tiny)
        place = (steps * (share + 1) / 2).floor().clamp(max=steps - 1)
        rounded: Tensor = size * (2 * (place + 0.5) / steps - 1)
        return rounded.to(answers.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Project:
    """Answers within the k-dimensional space that holds most of some reference answers.

    z' = V_k V_k^T z, with V_k the first k right singular vectors of the reference

    An honest client compares answers with text vectors, so the k coordinates come back as a vector of the full space;
    they carry the same information. The reference is not centred: a common part of all answers is one of the k.

    Args:
        k: 1 to d; d returns the answers untouched.
        reference: [n, d] answers of the service's own, n at least k.

    Raises:
        ValueError: for a k outside, or answers of another width than the reference.

    Source: ours.
    """

    k: int
    reference: Tensor
    _basis: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.reference.ndim != 2 or not 1 <= self.k <= min(self.reference.shape):
            raise ValueError(
                f"k must lie between 1 and both sides of reference, got {self.k} for {list(self.reference.shape)}"
            )
        right = torch.linalg.svd(self.reference.double(), full_matrices=False).Vh
        object.__setattr__(self, "_basis", right[: self.k].T)

    def __call__(self, answers: Tensor, egos: EgoGraphs, texts: Sequence[str] | None) -> Tensor:
        width = self.reference.shape[1]
        if answers.shape[1] != width:
            raise ValueError(f"reference is {width} wide, answers are {answers.shape[1]}: take it from this service")
        if self.k == width:
            return answers
        return (answers.double() @ self._basis @ self._basis.T).to(answers.dtype)


@dataclass(frozen=True, kw_only=True)
class LabelOnly:
    """Makes a service return the best class alone; embeddings pass through it, the service turns the last into labels.

    Source: ours; the strongest response level.
    """

    def __call__(self, answers: Tensor, egos: EgoGraphs, texts: Sequence[str] | None) -> Tensor:
        return answers


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Ends a service to a client after so many answers; embeddings pass through it, the service counts.

    Args:
        n: answers to one client in all.

    Raises:
        ValueError: for a negative number.

    Source: ours.
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError(f"n must be at least 0, got {self.n}")

    def __call__(self, answers: Tensor, egos: EgoGraphs, texts: Sequence[str] | None) -> Tensor:
        return answers


def _keyed_normals(key: int, hashes: Tensor, width: int) -> Tensor:
    """[G, width] standard normal numbers from a keyed cryptographic stream: without the key nobody can subtract them.

    The 53 upper bits of eight bytes make a uniform number inside (0, 1), its normal quantile the result.
    """
    secret = hashlib.sha256(repr(("noise", key)).encode()).digest()
    streams = [hashlib.shake_256(secret + row.tobytes()).digest(8 * width) for row in hashes.numpy()]
    drawn = np.frombuffer(b"".join(streams), dtype="<u8").reshape(len(hashes), width)
    return torch.from_numpy(ndtri(((drawn >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53))

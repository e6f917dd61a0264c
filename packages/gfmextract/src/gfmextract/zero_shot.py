"""Zero-shot classification by cosine, and when two encoders are sure to agree on it."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize


def class_scores(z: Tensor, text: Tensor) -> Tensor:
    """Cosines of graph vectors with class vectors.

    s_vc = z_v . t_c / (norm(z_v) norm(t_c))

    Args:
        z: [G, d] vectors of graphs.
        text: [C, d] vectors of the classes' prompts.

    Returns:
        [G, C].

    Raises:
        ValueError: for vectors of unequal width, or fewer than two classes.

    >>> import torch
    >>> class_scores(torch.tensor([[3.0, 0.0]]), torch.eye(2))
    tensor([[1., 0.]])

    Source: arXiv 2511.11912, section on the victim.
    """
    return _cosines(z, text).to(z.dtype)


def predict(z: Tensor, text: Tensor) -> Tensor:
    """[G] the classes of the highest cosine; arguments as in `class_scores`."""
    return _cosines(z, text).argmax(1)


def margins(z: Tensor, text: Tensor) -> Tensor:
    """[G] by how much the highest cosine exceeds the second; arguments as in `class_scores`.

    >>> import torch
    >>> margins(torch.tensor([[3.0, 4.0]]), torch.eye(2))
    tensor([0.2000])
    """
    return _margins(z, text).to(z.dtype)


def certified_agreement(a: Tensor, z: Tensor, text: Tensor) -> float:
    """Share of graphs on which two encoders must predict the same class, whatever the rest of the space looks like.

    With unit vectors, abs(cos(a, t) - cos(z, t)) <= norm(a^ - z^) for every t. A class can therefore be overtaken only
    if z's margin m_v is at most twice that; agreement is certain where m_v > 2 norm(a^_v - z^_v). The share never
    exceeds the fidelity.

    Args:
        a: [G, d] vectors of the attacker.
        z: [G, d] vectors of the victim.
        text: [C, d] vectors of the classes' prompts.

    Raises:
        ValueError: for shapes that do not agree, no graph, or fewer than two classes.

    >>> import torch
    >>> certified_agreement(torch.eye(2), torch.eye(2), torch.eye(2))
    1.0

    Source: our own bound.
    """
    if a.shape != z.shape or not len(z):
        raise ValueError(f"a and z must have one shape with at least one row, got {list(a.shape)} and {list(z.shape)}")
    distance = (normalize(a.double()) - normalize(z.double())).norm(dim=1)
    return float((_margins(z, text) > 2 * distance).double().mean())


def _margins(z: Tensor, text: Tensor) -> Tensor:
    highest: Tensor = _cosines(z, text).topk(2, dim=1).values
    return highest[:, 0] - highest[:, 1]


def _cosines(z: Tensor, text: Tensor) -> Tensor:
    """In double precision, so that predictions and certificates round alike."""
    if z.ndim != 2 or text.ndim != 2 or z.shape[1] != text.shape[1]:
        raise ValueError(f"z and text must be [G, d] and [C, d] of one d, got {list(z.shape)} and {list(text.shape)}")
    if len(text) < 2:
        raise ValueError(f"text must have at least two classes, got {len(text)}: zero-shot has nothing to tell apart")
    cosines: Tensor = normalize(z.double()) @ normalize(text.double()).T
    return cosines

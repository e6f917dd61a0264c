"""How close a copy comes to the victim: in its answers, and in what they decide."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gfmextract.zero_shot import certified_agreement, predict


def accuracy(predicted: Tensor, y: Tensor) -> float:
    """Share of nodes whose predicted class [G] is theirs [G].

    >>> accuracy(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]))
    0.75
    """
    if predicted.shape != y.shape or not len(y):
        raise ValueError(f"predicted must have the shape of y, got {list(predicted.shape)} and {list(y.shape)}")
    return (predicted.cpu() == y.cpu()).double().mean().item()


def fidelity(a: Tensor, z: Tensor, text: Tensor) -> float:
    """Share of ego graphs that copy and victim put into the same class: P(argmax_c cos(a, t_c) = argmax_c cos(z, t_c)).

    Args:
        a, z: [G, d] vectors of copy and victim.
        text: [C, d] vectors of the classes' prompts.

    >>> fidelity(torch.tensor([[1.0, 0.1], [1.0, 0.1]]), torch.eye(2), torch.eye(2))
    0.5
    """
    return accuracy(predict(a, text), predict(z, text))


def mean_cosine(a: Tensor, z: Tensor) -> float:
    """Mean over ego graphs of cos(a, z), for [G, d] vectors of copy and victim.

    >>> mean_cosine(torch.eye(2), torch.tensor([[2.0, 0.0], [3.0, 0.0]]))
    0.5
    """
    return functional.cosine_similarity(*_pair(a, z)).mean().item()


def linear_cka(a: Tensor, z: Tensor) -> float:
    """Linear centred kernel alignment, norm(A'Z)^2 / (norm(A'A) norm(Z'Z)) of centred A and Z: 1 where equal up
    to rotation and scale.

    Args:
        a: [G, d] vectors of the copy.
        z: [G, e] vectors of the victim.

    Returns:
        A number in [0, 1]; NaN where one of them is constant.

    Source: Kornblith et al., ICML 2019.

    >>> round(linear_cka(torch.eye(3), 2.0 * torch.eye(3)[:, [1, 0, 2]]), 6)
    1.0
    """
    if len(a) != len(z):
        raise ValueError(f"a and z must have one row for each ego graph, got {len(a)} and {len(z)}")
    a, z = (each.cpu().double() - each.cpu().double().mean(0) for each in (a, z))
    below = torch.linalg.matrix_norm(a.T @ a) * torch.linalg.matrix_norm(z.T @ z)
    return float((torch.linalg.matrix_norm(a.T @ z) ** 2 / below).item()) if below > 0 else float("nan")


def measures(a: Tensor, z: Tensor, y: Tensor, text: Tensor | None) -> dict[str, float]:
    """All of them: accuracy of copy and victim, gap (victim minus copy), fidelity, cosine, cka, certified_agreement.

    CKA is that of unit vectors, which are what decides a class; one vector of unusual length would settle it else.

    Args:
        a, z: [G, d] vectors of copy and victim.
        y: [G] classes.
        text: [C, d] vectors of the classes' prompts; None, and all but cosine and cka are NaN.

    >>> found = measures(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), torch.eye(2))
    >>> found["gap"], found["fidelity"], found["certified_agreement"]
    (0.0, 1.0, 1.0)
    """
    a, z = _pair(a, z)
    found = dict.fromkeys(("accuracy", "victim_accuracy", "gap", "fidelity"), float("nan"))
    if text is not None:
        text = text.cpu().double()
        of_copy, of_victim = accuracy(predict(a, text), y), accuracy(predict(z, text), y)
        found = {"accuracy": of_copy, "victim_accuracy": of_victim, "gap": of_victim - of_copy}
        found["fidelity"] = fidelity(a, z, text)
    found |= {"cosine": mean_cosine(a, z), "cka": linear_cka(functional.normalize(a), functional.normalize(z))}
    return found | {"certified_agreement": float("nan") if text is None else certified_agreement(a, z, text)}


def _pair(a: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != z.shape or a.ndim != 2:
        raise ValueError(f"a and z must both be [G, d], got {list(a.shape)} and {list(z.shape)}")
    return a.cpu().double(), z.cpu().double()

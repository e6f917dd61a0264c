"""The baselines' losses, called as `UADLoss` is: standard training, AT, TRADES, MART."""

from __future__ import annotations

import torch
from aisec_common.torch.linf_pgd import check_images, check_logits, evaluating, linf_pgd
from torch import Tensor, nn
from torch.nn import functional as F

from uadat.adversary import kl_adversary
from uadat.distributed import unwrapped
from uadat.robust_loss import LossParts, RobustLoss, Views, check_radius
from uadat.split import Forward


class StandardLoss(RobustLoss):
    """Cross-entropy on the clean images, no attack.

    >>> StandardLoss().eps is None
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self.eps = None
        self.settings = {}

    def prepare(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, progress: float, generator: torch.Generator | None
    ) -> Views:
        """The clean images in every place."""
        check_images(images)
        return Views(images=images, labels=labels, reference=images, adversarial=images)

    def on(self, model: nn.Module, views: Views, forward: Forward | None = None) -> LossParts:
        """CE(f(x), y)."""
        logits, labels = check_logits((forward or model)(views.images), len(views.images)), views.labels
        if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
            raise ValueError(f"labels must lie in 0..{logits.shape[1] - 1}, the classes of the model")
        total = F.cross_entropy(logits, labels)
        return LossParts.of(total, {}, views.shares)


class _Attacked(RobustLoss):
    """A loss on x and PGD's x_a on the cross-entropy, with BatchNorm in eval mode while attacking."""

    def __init__(self, eps: float, steps: int, step_size: float | None) -> None:
        super().__init__()
        self.eps, self.steps, self.step_size = check_radius(eps), steps, step_size
        self.settings = {"eps": self.eps, "steps": steps, "step_size": step_size}

    def prepare(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, progress: float, generator: torch.Generator | None
    ) -> Views:
        """x_a = argmax CE(f(x'), y), by PGD from a uniform start."""
        assert self.eps is not None
        adversarial = linf_pgd(
            unwrapped(model),
            images,
            labels,
            eps=self.eps,
            steps=self.steps,
            step_size=self.step_size,
            generator=generator,
        )
        return Views(images=images, labels=labels, reference=images, adversarial=adversarial)


class ATLoss(_Attacked):
    """Adversarial training, CE(f(x_a), y).

    Args:
        eps: radius.
        steps: of the attack.
        step_size: default eps / 4.

    Source: Madry et al., ICLR 2018.

    >>> ATLoss(8 / 255).settings["steps"]
    10
    """

    def __init__(self, eps: float, steps: int = 10, step_size: float | None = None) -> None:
        super().__init__(eps, steps, step_size)

    def on(self, model: nn.Module, views: Views, forward: Forward | None = None) -> LossParts:
        """CE(f(x_a), y)."""
        total = F.cross_entropy((forward or model)(views.adversarial), views.labels)
        return LossParts.of(total, {}, views.shares)


class TRADESLoss(_Attacked):
    """TRADES, CE(f(x), y) + beta KL(f(x) || f(x_a)).

    Args:
        eps: radius.
        beta: weight of the divergence.
        steps: of the attack, on the divergence.
        step_size: default eps / 4.

    Source: Zhang et al., ICML 2019.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> parts = TRADESLoss(0.1)(net, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 1])).parts
    >>> list(parts)
    ['total', 'ce', 'kl']
    """

    def __init__(self, eps: float, beta: float = 6.0, steps: int = 10, step_size: float | None = None) -> None:
        super().__init__(eps, steps, step_size)
        self.beta = beta
        self.settings["beta"] = beta

    def prepare(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, progress: float, generator: torch.Generator | None
    ) -> Views:
        """x_a = argmax KL(f(x) || f(x'))."""
        assert self.eps is not None
        check_images(images)
        module = unwrapped(model)
        with evaluating(module), torch.no_grad():
            clean = check_logits(module(images), len(images))
        adversarial = kl_adversary(
            module,
            images,
            labels,
            clean,
            eps=self.eps,
            steps=self.steps,
            step_size=self.step_size,
            generator=generator,
        )
        return Views(images=images, labels=labels, reference=images, adversarial=adversarial)

    def on(self, model: nn.Module, views: Views, forward: Forward | None = None) -> LossParts:
        """The loss at given x and x_a."""
        run = forward or model
        clean, adversarial = run(views.images), run(views.adversarial)
        ce = F.cross_entropy(clean, views.labels)
        kl = F.kl_div(adversarial.log_softmax(1), clean.softmax(1), reduction="batchmean")
        total = ce + self.beta * kl
        return LossParts.of(total, {"ce": ce, "kl": kl}, views.shares)


class MARTLoss(_Attacked):
    """MART, BCE(f(x_a), y) + beta mean_i KL(f(x_i) || f(x_a,i)) (1 - p_y(x_i)).

    BCE = -log p_y(x_a) - log (1 - max_{k != y} p_k(x_a)), the boosted cross-entropy.

    Args:
        eps: radius.
        beta: weight of the divergence.
        steps: of the attack, on the cross-entropy.
        step_size: default eps / 4.

    Source: Wang et al., ICLR 2020.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> loss = MARTLoss(0.1)(net, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 1]))
    >>> loss.total.requires_grad
    True
    """

    def __init__(self, eps: float, beta: float = 6.0, steps: int = 10, step_size: float | None = None) -> None:
        super().__init__(eps, steps, step_size)
        self.beta = beta
        self.settings["beta"] = beta

    def on(self, model: nn.Module, views: Views, forward: Forward | None = None) -> LossParts:
        """The loss at given x and x_a."""
        run, own = forward or model, views.labels[:, None]
        clean, adversarial = (run(images).log_softmax(1) for images in (views.images, views.adversarial))
        others = adversarial.scatter(1, own, -torch.inf).amax(1).exp()
        boosted = (-adversarial.gather(1, own)[:, 0] - torch.log1p(-others.clamp(max=1 - 1e-4))).mean()
        divergence = F.kl_div(adversarial, clean, log_target=True, reduction="none").sum(1)
        weighted = (divergence * (1 - clean.gather(1, own)[:, 0].exp())).mean()
        total = boosted + self.beta * weighted
        return LossParts.of(total, {"bce": boosted, "kl": weighted}, views.shares)

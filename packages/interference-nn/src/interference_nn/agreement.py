"""Background agreement as an anomaly score: does the network still recognise what was put over the image?"""

from __future__ import annotations

import torch
from aisec_common.torch.linf_pgd import evaluating
from torch import Tensor

from interference_nn.net import InterferenceNet


@torch.no_grad()
def agreement_auroc(
    net: InterferenceNet,
    clean: Tensor,
    attacked: Tensor,
    generator: torch.Generator | None = None,
) -> float:
    """How well background agreement tells clean from attacked images: the area under the ROC curve.

    Args:
        net: put into eval mode meanwhile.
        clean: images whose agreement should be high.
        attacked: images whose agreement should be low.
        generator: of the draws.

    Returns:
        P(agreement(clean) > agreement(attacked)), ties counted half; .5 is chance.

    Raises:
        ValueError: for head "extra_class", which draws no backgrounds.
    """
    from sklearn.metrics import roc_auc_score

    if net.settings.head == "extra_class":
        raise ValueError("net has head 'extra_class', which draws no backgrounds; agreement is of readings with blends")
    with evaluating(net):
        shares = torch.cat([net.with_agreement(images, generator)[1] for images in (clean, attacked)])
    truth = torch.cat([torch.ones(len(clean)), torch.zeros(len(attacked))])
    return float(roc_auc_score(truth.numpy(), shares.cpu().numpy()))

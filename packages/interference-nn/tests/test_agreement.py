import pytest
import torch
from small_nets import images, net

from interference_nn.agreement import agreement_auroc


def test_the_auroc_of_agreement():
    made = net(draws=4, alpha=0.5)
    clean, attacked = torch.zeros(20, 1, 8, 8), torch.ones(20, 1, 8, 8)

    def agreement(batch, generator):
        level = batch.mean((1, 2, 3))
        return None, torch.where(level < 0.5, 1.0, 0.25)

    made.with_agreement = agreement
    assert agreement_auroc(made, clean, attacked) == 1.0
    assert agreement_auroc(made, attacked, clean) == 0.0
    assert agreement_auroc(made, clean, torch.cat([clean, attacked])) == pytest.approx(0.75)


def test_an_untrained_head_is_near_chance():
    found = agreement_auroc(net(draws=8), images(200), images(200, seed=1), torch.Generator().manual_seed(0))
    assert found == pytest.approx(0.5, abs=0.1)


def test_without_blends_there_is_no_agreement():
    with pytest.raises(ValueError, match="extra_class"):
        agreement_auroc(net(head="extra_class"), images(), images())

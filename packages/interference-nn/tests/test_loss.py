import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interference_nn.loss import check_labels, extra_class_loss, interference_loss


def logits(seed, classes=5, backgrounds=3, n=4):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, classes, generator=rng).double(), torch.randn(n, backgrounds, generator=rng).double()


@given(st.integers(0, 2**31), st.floats(0.01, 4), st.floats(0, 0.5))
def test_losses_against_sums_by_hand(seed, weight, smoothing):
    t, b = logits(seed)
    y, l = torch.tensor([0, 1, 4, 2]), torch.tensor([2, 0, 1, 1])  # noqa: E741  the paper's letter
    own, other = t.log_softmax(1), b.log_softmax(1)
    smooth = [(1 - smoothing) * own[i, y[i]] + smoothing * own[i].mean() for i in range(4)]
    two = -sum(smooth) / 4 - weight * sum(other[i, l[i]] for i in range(4)) / 4
    found = interference_loss(t, b, y, l, weight=weight, label_smoothing=smoothing)
    assert found.item() == pytest.approx(two.item(), rel=1e-9)
    both = torch.cat([t, b], dim=1).log_softmax(1)
    share = weight / (1 + weight)
    per_image = [
        (1 - share) * ((1 - smoothing) * both[i, y[i]] + smoothing * both[i, :5].mean()) + share * both[i, 5 + l[i]]
        for i in range(4)
    ]
    found = interference_loss(t, b, y, l, weight=weight, head="joint", label_smoothing=smoothing)
    assert found.item() == pytest.approx(-sum(per_image).item() / 4, rel=1e-9)


def test_extra_classes_weigh_by_their_number():
    both = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).double()
    y = torch.tensor([0, 1, 2, 3, 5, 7])
    each = torch.nn.functional.cross_entropy(both, y, reduction="none")
    assert extra_class_loss(both, y, 4).item() == pytest.approx((each[:4].mean() + 0.5 * each[4:].mean()).item())


def test_wrong_labels_are_refused():
    with pytest.raises(ValueError, match="labels"):
        check_labels(torch.tensor([-1]), 3)
    with pytest.raises(TypeError, match="labels"):
        check_labels(torch.tensor([0.0]), 3)
    t, b = logits(0)
    with pytest.raises(ValueError, match="extra_class"):
        interference_loss(t, b, torch.zeros(4).long(), torch.zeros(4).long(), head="extra_class")

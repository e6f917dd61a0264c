import pytest
import torch
from sklearn.datasets import load_digits as whole

from interference_nn.digits import load_digits


def test_every_digit_is_in_one_part_only_and_unchanged():
    digits = load_digits(3)
    assert (len(digits.train_images), len(digits.test_images)) == (1497, 300)
    both = torch.cat([digits.train_images, digits.test_images]).flatten(1) * 16
    wanted = torch.as_tensor(whole().data, dtype=torch.float32)
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, wanted.tolist()))
    assert both.min() == 0
    assert both.max() == 16


def test_the_parts_have_the_same_shares_of_labels():
    digits = load_digits(0)
    shares = [torch.bincount(labels) / len(labels) for labels in (digits.train_labels, digits.test_labels)]
    assert (shares[0] - shares[1]).abs().max() < 0.003


def test_the_seed_decides():
    assert torch.equal(load_digits(1).test_images, load_digits(1).test_images)
    assert not torch.equal(load_digits(1).test_images, load_digits(2).test_images)


@pytest.mark.parametrize("test", [5, 1790])
def test_misuse(test):
    with pytest.raises(ValueError, match="test"):
        load_digits(0, test=test)

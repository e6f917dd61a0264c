import pytest
import torch
from sklearn.datasets import load_digits

from uadat.digits import digits
from uadat.image_splits import as_tensors


def test_the_parts_share_no_image_and_every_class_has_its_share():
    parts = digits(3)
    images = {name: as_tensors(getattr(parts, name))[0] for name in ("train", "validation", "test")}
    labels = {name: as_tensors(getattr(parts, name))[1] for name in images}
    together = torch.cat(list(images.values())).flatten(1)
    known = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    places = (torch.cdist(together, known) < 1e-6).nonzero()
    assert len(places) == 1200  # the 1797 digits are all different
    assert len(places[:, 1].unique()) == 1200
    for each in labels.values():
        counts = torch.bincount(each, minlength=10)
        assert counts.max() - counts.min() <= len(each) // 50 + 2
    assert together.min() == 0
    assert together.max() == 1


def test_a_seed_fixes_the_split():
    one, two, other = (as_tensors(digits(seed).train)[0] for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_labels_belong_to_their_images():
    source = load_digits()
    images, labels = as_tensors(digits(0).test)
    rows = [int((abs(source.data / 16 - image.flatten().numpy()).sum(1)).argmin()) for image in images[:20]]
    assert source.target[rows].tolist() == labels[:20].tolist()


@pytest.mark.parametrize("sizes", [{"train": 5}, {"train": 1500}, {"validation": 0}])
def test_sizes_that_cannot_be(sizes):
    with pytest.raises(ValueError, match=r"at (least|most)"):
        digits(0, **sizes)

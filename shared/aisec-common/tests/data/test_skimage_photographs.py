import pytest
import torch

pytest.importorskip("skimage")

from aisec_common.data.skimage_photographs import _half, _photographs, load_photographs


def test_shapes_labels_and_range():
    crops = load_photographs(0, train=3, test=2, size=32)
    assert crops.train_images.shape == (27, 3, 32, 32)
    assert crops.test_images.shape == (18, 3, 32, 32)
    assert len(crops.names) == 9
    assert torch.bincount(crops.train_labels).tolist() == [3] * 9
    assert torch.bincount(crops.test_labels).tolist() == [2] * 9
    assert crops.train_images.min() >= 0
    assert crops.train_images.max() <= 1


def test_the_halves_of_a_photograph_share_no_pixel():
    for picture in _photographs().values():
        marked = torch.arange(picture[0].numel()).reshape(1, *picture.shape[1:])
        first, second = (set(_half(marked, part).flatten().tolist()) for part in (True, False))
        assert not first & second
        assert len(first | second) > 0.99 * marked.numel()


def test_the_seed_decides_the_crops():
    one, two, other = (load_photographs(seed, train=1, test=1, size=16) for seed in (0, 0, 1))
    assert torch.equal(one.train_images, two.train_images)
    assert not torch.equal(one.train_images, other.train_images)


@pytest.mark.parametrize("wrong", [{"train": 0}, {"test": 0}, {"size": 0}])
def test_misuse(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        load_photographs(0, **wrong)

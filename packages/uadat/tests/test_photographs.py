import pytest
import torch
from aisec_common.data.skimage_photographs import load_photographs

from uadat.image_splits import as_tensors
from uadat.photographs import photographs


def test_test_crops_are_of_the_other_halves_and_the_rest_is_shared_out():
    parts = photographs(2, size=16, train=3, validation=12, test=2)
    crops = load_photographs(2, train=5, test=2, size=16)
    (images, labels), (held_out, names), (test, truth) = (
        part.tensors for part in (parts.train, parts.validation, parts.test)
    )
    assert (parts.classes, parts.channels) == (9, 3)
    assert torch.equal(labels, torch.arange(9).repeat_interleave(3))
    assert names.tolist() == [*range(9), 0, 1, 2]
    assert truth.tolist() == [*range(9)] * 2
    first = {tuple(crop.flatten().tolist()) for crop in crops.train_images}
    other = {tuple(crop.flatten().tolist()) for crop in crops.test_images}
    mine = [tuple(crop.flatten().tolist()) for crop in (*images, *held_out)]
    assert len(set(mine)) == 39
    assert set(mine) <= first
    assert {tuple(crop.flatten().tolist()) for crop in test} == other


def test_labels_belong_to_their_images():
    parts = photographs(0, size=16, train=1, validation=9, test=1)
    crops = load_photographs(0, train=2, test=1, size=16)
    for images, labels in (parts.train.tensors, parts.validation.tensors):
        for image, label in zip(images, labels, strict=True):
            place = (crops.train_images == image).flatten(1).all(1).nonzero().item()
            assert crops.train_labels[place] == label


def test_a_few_test_crops_are_of_every_photograph():
    assert as_tensors(photographs(0, size=16, train=1, validation=9, test=2).test, 9)[1].unique().numel() == 9


@pytest.mark.parametrize("wrong", [{"train": 0}, {"validation": 0}, {"test": 0}, {"size": 0}])
def test_misuse(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        photographs(0, **wrong)

import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from uadat.crops import ImageBatches
from uadat.image_splits import as_tensors, loader

IMAGES = torch.rand(10, 1, 2, 2)
DATA = TensorDataset(IMAGES, torch.arange(10))


def test_the_order_is_that_of_the_data_without_a_seed():
    labels = torch.cat([labels for _, labels in loader(DATA, 4)])
    assert torch.equal(labels, torch.arange(10))


def test_a_seed_shuffles_the_same_way_and_anew_in_every_epoch():
    one, two = loader(DATA, 4, shuffle_seed=1), loader(DATA, 4, shuffle_seed=1)
    epochs = [torch.cat([labels for _, labels in one]).tolist() for _ in range(2)]
    assert torch.cat([labels for _, labels in two]).tolist() == epochs[0] != epochs[1]
    assert len(epochs[0]) == 8
    assert len(set(epochs[0])) == 8


def test_batches_that_a_data_set_makes_itself_pass_through():
    pixels = (IMAGES * 255).byte()
    data = Subset(ImageBatches(lambda rows: pixels[torch.as_tensor(rows)], torch.arange(10)), [3, 1, 7])
    (batch,) = loader(data, 4)
    assert torch.equal(batch[0], pixels[[3, 1, 7]].float() / 255)
    assert batch[1].tolist() == [3, 1, 7]
    images, labels = as_tensors(data)
    assert torch.equal(images, batch[0])
    assert torch.equal(labels, batch[1])


def test_as_tensors_takes_the_first():
    images, labels = as_tensors(Subset(DATA, [5, 6, 7]), 2)
    assert torch.equal(images, IMAGES[5:7])
    assert as_tensors(DATA)[1].tolist() == list(range(10))
    assert labels.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: loader(DATA, 0), "batch_size"),
        (lambda: loader(DATA, 11, shuffle_seed=0), "batch_size 11 is more than the 10 images"),
        (lambda: as_tensors(DATA, 0), "limit"),
        (lambda: as_tensors(Subset(DATA, [])), "no image"),
    ],
)
def test_misuse(call, words):
    with pytest.raises(ValueError, match=words):
        call()

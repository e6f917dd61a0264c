import torch
from aisec_common.seeding import torch_rng
from torch.nn import functional

from uadat.crops import ImageBatches, crop_and_flip

IMAGES = torch.randint(0, 256, (40, 3, 8, 8), generator=torch_rng(0, "images"), dtype=torch.uint8)


def test_every_crop_is_one_of_the_image_or_of_its_mirror():
    cut = crop_and_flip(IMAGES, torch_rng(0, "crops"), padding=2)
    padded = functional.pad(IMAGES, (2, 2, 2, 2))
    found = set()
    for number in range(len(IMAGES)):
        places = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
            if torch.equal(cut[number], _mirrored(padded[number, :, top : top + 8, left : left + 8], mirrored))
        ]
        assert len(places) == 1
        found |= set(places)
    assert len(found) > 15
    assert {mirrored for *_, mirrored in found} == {False, True}


def _mirrored(image, mirrored):
    return image.flip(-1) if mirrored else image


def test_batches_are_the_same_for_the_same_indices_and_new_in_another_order():
    data = ImageBatches(lambda rows: IMAGES[torch.as_tensor(rows)], torch.arange(40), augment_seed=3)
    one, two, other = (data.__getitems__(rows)[0] for rows in ([1, 2, 3], [1, 2, 3], [3, 2, 1]))
    assert torch.equal(one, two)
    assert not torch.equal(one, other.flip(0))
    assert (one * 255).round().sub(one * 255).abs().max() < 1e-4
    assert one.min() >= 0
    assert one.max() <= 1


def test_without_a_seed_the_images_are_as_they_were():
    data = ImageBatches(lambda rows: IMAGES[torch.as_tensor(rows)], torch.arange(40))
    assert len(data) == 40
    image, label = data[7]
    assert torch.equal(image, IMAGES[7].float() / 255)
    assert label == 7

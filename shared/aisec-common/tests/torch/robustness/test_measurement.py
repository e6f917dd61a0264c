from __future__ import annotations

import pytest
import torch
from aisec_common.torch.robustness import Rung, noise
from aisec_common.torch.robustness.measurement import Measurement, in_ball
from aisec_common.torch.robustness.sample_log import SampleLog
from torch import Tensor, nn

from tests.torch.robustness.conftest import EPS, Noisy


def measured(model: nn.Module, images: Tensor, labels: Tensor, passes: int = 1) -> Measurement:
    run = Measurement(
        model=model,
        images=images,
        labels=labels,
        ids=[str(number) for number in range(len(images))],
        passes=passes,
        batch_size=30,
        seed=0,
        log=SampleLog(None, {}),
        progress=lambda *what: None,
    )
    run.clean()
    return run


def test_finds_out_whether_a_model_is_random(plain, test_set):
    assert not measured(plain, *test_set).model.random
    assert measured(Noisy(plain, 0.1), *test_set).model.random


def test_every_rung_is_scored_with_the_draws_of_the_clean_images(plain, test_set):
    run = measured(Noisy(plain, 0.3), *test_set, passes=5)
    still = Rung(name="still", kind="white_box", attack=lambda model, images, *rest: images)
    run.attack(still, EPS, len(test_set[0]))
    assert run.samples("still", EPS) == run.samples("clean", 0.0)


def test_only_right_images_are_attacked(plain, test_set):
    run = measured(plain, *test_set)
    given: list[Tensor] = []

    def spy(model: object, images: Tensor, *rest: object) -> Tensor:
        given.append(images)
        return images

    run.attack(Rung(name="spy", kind="white_box", attack=spy), EPS, 50)
    clean = torch.tensor(run.right("clean", 0.0)[:50])
    assert torch.equal(torch.cat(given), test_set[0][:50][clean])
    assert [sample.id for sample in run.samples("spy", EPS)] == [str(number) for number in range(50)]
    taken = torch.cat([images for images, _ in run.right_images(50)])
    assert torch.equal(taken, test_set[0][:50][clean])


def test_rounding_is_no_leaving_of_the_ball():
    images = torch.rand(4, 1, 8, 8)
    found = in_ball((images + EPS + 5e-7).clamp(0, 1 + 5e-7), images, EPS, "mine")
    assert float(found.max()) <= 1
    with pytest.raises(ValueError, match="mine left the ball"):
        in_ball(images + EPS + 5e-6, images, EPS, "mine")


def test_noise_differs_from_batch_to_batch_and_comes_again(plain, test_set):
    one, two = (measured(plain, torch.full_like(test_set[0], 0.5), test_set[1]) for _ in range(2))
    for run in (one, two):
        run.attack(noise(), EPS, 60)
    assert one.log.batches == two.log.batches

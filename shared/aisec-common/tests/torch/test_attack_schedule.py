import pytest
import torch
from aisec_common.seeding import torch_rng
from aisec_common.torch.attack_schedule import attack_start, step_counts, step_sizes

IMAGES = torch.rand(4000, 1, 2, 2, generator=torch_rng(0))
KINDS = ("uniform", "normal")


def test_starts_are_of_their_kind():
    uniform, normal = (attack_start(IMAGES, kind, eps=0.3, generator=torch_rng(1)) - IMAGES for kind in KINDS)
    assert float(uniform.abs().max()) <= 0.3 + 1e-6
    assert float(uniform.var()) == pytest.approx(0.3**2 / 3, rel=0.05)
    assert float(normal.std()) == pytest.approx(0.001, rel=0.05)
    assert torch.equal(attack_start(IMAGES, "zero", eps=0.3), IMAGES)
    given = IMAGES.double().requires_grad_()
    assert torch.equal(attack_start(IMAGES, given, eps=0.3), IMAGES)


def test_a_seed_gives_one_start():
    one, two = (attack_start(IMAGES, "uniform", eps=0.1, generator=torch_rng(2)) for _ in range(2))
    assert torch.equal(one, two)


def test_one_number_or_one_for_each():
    images = IMAGES[:3].double()
    assert step_counts(torch.tensor([0, 1, 5]), images).tolist() == [0, 1, 5]
    sizes = step_sizes(torch.tensor([0.5, 1.0, 2.0]), images)
    assert sizes.dtype == torch.double
    assert sizes.shape == (3, 1, 1, 1)
    assert sizes.flatten().tolist() == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attack_start(IMAGES, "middle", eps=0.1), "start must be 'uniform'"),
        (lambda: attack_start(IMAGES, IMAGES[:2], eps=0.1), "start must be of the shape"),
        (lambda: step_counts(-1, IMAGES), "steps must be >= 0, not -1"),
        (lambda: step_counts(1.5, IMAGES), "steps must be a whole number"),
        (lambda: step_counts(torch.ones(2).long(), IMAGES), r"steps must be a whole number or \[4000\]"),
        (lambda: step_sizes(0.0, IMAGES), "step_size must be positive, not 0"),
        (lambda: step_sizes(torch.ones(2), IMAGES), r"step_size must be a number or \[4000\]"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()

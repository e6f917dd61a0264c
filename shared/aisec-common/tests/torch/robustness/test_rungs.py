from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from aisec_common.seeding import torch_rng
from aisec_common.torch.robustness import Rung, noise, one_draw, pgd, standard_rungs, transfer
from torch import Tensor, nn

from tests.torch.robustness.conftest import EPS, Noisy


def attacked(rung: Rung, model: object, data: tuple[Tensor, Tensor], eps: float = EPS) -> Tensor:
    return rung.attack(model, *data, eps, torch_rng(0))


def right(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


def test_pgd_breaks_and_transfer_and_noise_break_less(plain, robust, test_set):
    found = {r.name: attacked(r, plain, test_set) for r in (pgd(20), pgd(20, loss="cw"), transfer(robust), noise())}
    left = {name: right(plain, images, test_set[1]) for name, images in found.items()}
    assert max(left["PGD-20"], left["CW-20"]) < left["transfer"] < left["noise"]
    assert all(float((images - test_set[0]).abs().max()) <= EPS + 1e-6 for images in found.values())


def test_noise_is_plus_or_minus_eps(test_set):
    change = attacked(noise(), None, (torch.full((20, 1, 8, 8), 0.5), test_set[1][:20])) - 0.5
    assert torch.allclose(change.abs(), torch.full_like(change, EPS))
    assert abs(float(change.sign().mean())) < 0.1


def test_transfer_leaves_the_surrogate_in_its_mode(robust, plain, test_set):
    robust.train()
    attacked(transfer(robust, steps=1), plain, test_set)
    assert robust.training
    robust.eval()


def test_draws_go_through_once(plain, test_set):
    class Averaging(nn.Module):
        """Counts its own calls and those of its single draw."""

        def __init__(self) -> None:
            super().__init__()
            self.whole = self.single = 0

        def once(self, images: Tensor) -> Tensor:
            self.single += len(images)
            return plain(images)

        def forward(self, images: Tensor) -> Tensor:
            self.whole += len(images)
            return plain(images)

    model = Averaging()
    assert one_draw(plain) is plain
    attacked(pgd(2, draws=4), model, test_set)
    assert model.whole == 0
    assert model.single >= 4 * len(test_set[0])


def test_a_random_model_takes_every_step(plain, test_set):
    model = Noisy(plain, 0.05)
    model.random = True
    calls: list[int] = []
    model.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    attacked(pgd(5), model, test_set, 0.5)
    assert sum(calls) == 5 * 200
    model.random, calls[:] = False, []
    attacked(pgd(5), model, test_set, 0.5)
    assert sum(calls) < 5 * 200


@pytest.mark.parametrize("target", ["random", "least_likely"])
def test_targets_are_never_the_label(plain, test_set, target):
    seen: list[Tensor] = []

    def spy(logits: Tensor, aims: Tensor) -> Tensor:
        seen.append(aims)
        return nn.functional.cross_entropy(logits, aims, reduction="none")

    plain_random = Noisy(plain, 0.0)
    plain_random.random = True  # so that the whole batch is seen
    attacked(pgd(1, loss=spy, target=target), plain_random, test_set)
    assert not (seen[0] == test_set[1]).any()
    if target == "least_likely":
        likelihood = plain(test_set[0]).scatter(1, test_set[1][:, None], torch.inf)
        assert torch.equal(seen[0], likelihood.argmin(1))
    else:
        assert len(seen[0].unique()) == 10


@pytest.mark.parametrize("random_model", [False, True])
def test_scales_grow_and_have_distinct_names(random_model, plain):
    sizes = []
    for scale in ("quick", "standard", "full"):
        rungs = standard_rungs(scale, random_model=random_model, surrogate=plain)
        names = [rung.name for rung in rungs]
        assert len(set(names)) == len(names)
        assert {"noise", "transfer"} <= {rung.kind for rung in rungs}
        assert any(rung.kind == "adaptive" for rung in rungs) == random_model
        assert any(rung.family == "apgd" for rung in rungs)
        sizes.append(sum(rung.steps * rung.draws for rung in rungs))
    assert sizes == sorted(sizes)


def test_a_renamed_rung_keeps_all_else():
    rung = replace(pgd(100), name="R4")
    assert rung.described() == pgd(100).described() | {"name": "R4"}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Rung(name="", kind="noise", attack=noise().attack), "name must say"),
        (lambda: Rung(name="worst case", kind="noise", attack=noise().attack), "name must say"),
        (lambda: Rung(name="a", kind="black_box", attack=noise().attack), "kind must be one of"),
        (lambda: standard_rungs("huge"), "scale must be one of"),
    ],
)
def test_errors(make, text):
    with pytest.raises(ValueError, match=text):
        make()

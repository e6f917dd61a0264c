import pytest
import torch
from aisec_common.torch.linf_pgd import linf_pgd
from torch import nn

from interference_nn import rungs as module
from interference_nn.rungs import EFFORTS, NAMES, Effort, behind, effort_named, ladder_rungs


class Shaky(nn.Module):
    """A random model that averages over 4 draws; `once` is one of them, `without_interference` has none."""

    random = True

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(16, 5)
        self.rows = []

    def once(self, images):
        self.rows.append(("once", len(images)))
        return self.head((images + 0.1 * torch.rand_like(images)).flatten(1))

    def without_interference(self, images):
        self.rows.append(("bare", len(images)))
        return self.head(images.flatten(1))

    def forward(self, images):
        self.rows.append(("mean", len(images)))
        return torch.stack([self.head((images + 0.1 * torch.rand_like(images)).flatten(1)) for _ in range(4)]).mean(0)


TINY = Effort(
    transfer_steps=2,
    average_steps=3,
    eot_steps=2,
    draws=6,
    restarts=1,
    apgd_steps=3,
    apgd_draws=2,
    square_queries=5,
    decision_queries=100,
)


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(0)
    return torch.rand(3, 1, 4, 4, generator=rng), torch.tensor([0, 1, 4])


def named(found):
    return {rung.name: rung for rung in found}


def test_a_random_model_climbs_all_nine(batch):
    found, left_out = ladder_rungs(Shaky(), TINY, surrogates={"plain": Shaky().without_interference})
    assert not left_out
    assert [rung.name.split()[0] for rung in found] == [*NAMES[:6], "R6", "R7", "R7", "R8", "R8", "noise"]
    kinds = {rung.name.split()[0]: rung.kind for rung in found}
    assert kinds["R1"] == kinds["R2"] == "transfer"
    assert kinds["R3"] == "white_box"
    assert kinds["R4"] == kinds["R5"] == kinds["R6"] == "adaptive"  # what nothing weaker may beat
    assert kinds["R7"] == "gradient_free"


@pytest.mark.parametrize("random", [True, False])
def test_every_rung_stays_in_the_ball(batch, random):
    model = Shaky()
    model.random = random
    found, _ = ladder_rungs(model, TINY, surrogates={"plain": Shaky().without_interference})
    for rung in found:
        attacked = rung.attack(model, *batch, 0.1, torch.Generator().manual_seed(0))
        assert (attacked - batch[0]).abs().max() <= 0.1 + 1e-6, rung.name
        assert attacked.min() >= 0, rung.name
        assert attacked.max() <= 1, rung.name


def test_which_passes_each_rung_makes(batch):
    model = Shaky()
    found = named(ladder_rungs(model, TINY)[0])
    for name, wanted in (
        ("R2 oblivious", {("bare", 3)}),
        ("R3 one draw", {("once", 3)}),
        ("R4 PGD-3", {("mean", 3)}),
        ("R5 EOT-PGD-2", {("once", 18)}),  # the pooled draws replace the M of a call
    ):
        model.rows.clear()
        found[name].attack(model, *batch, 0.1, torch.Generator().manual_seed(0))
        assert set(model.rows) == wanted, name


def test_a_deterministic_model_is_not_averaged(batch):
    model = Shaky()
    model.random = False
    found = named(ladder_rungs(model, TINY)[0])
    assert {rung.draws for rung in found.values()} == {1}
    assert {rung.kind for name, rung in found.items() if name[:2] in ("R3", "R4", "R5", "R6")} == {"white_box"}
    assert {"R6 APGD-CE", "R6 APGD-DLR", "R8 APGD-T"} <= set(found)
    assert "R6 AutoAttack" in named(ladder_rungs(model, EFFORTS["full"])[0])


def test_what_cannot_be_climbed_is_told(monkeypatch):
    monkeypatch.setattr(module, "art_installed", lambda: False)
    found, left_out = ladder_rungs(lambda images: images.flatten(1), TINY)
    assert set(left_out) == {"R1", "R2", "R7 HopSkipJump"}
    assert not any(rung.name.startswith(("R1", "R2")) for rung in found)


def test_more_surrogates_stand_beside_the_first():
    surrogates = {"plain": Shaky().without_interference, "PGD-AT": Shaky().without_interference}
    found, _ = ladder_rungs(Shaky(), Effort(rungs=("R1",)), surrogates=surrogates)
    assert [rung.name for rung in found] == ["R1 transfer", "R1 PGD-AT", "noise"]


def test_behind_a_stand_in_the_model_is_never_asked(batch):
    model, other = Shaky(), Shaky()
    (rung, _) = behind(ladder_rungs(model, Effort(rungs=("R3",)))[0], other)
    rung.attack(model, *batch, 0.1, torch.Generator())
    assert not model.rows
    assert other.rows


def test_averaging_changes_nothing_on_a_deterministic_model(batch):
    """Acceptance row 9: same steps, step size and start, M- and E-averages: bitwise the same image."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    images, labels = batch
    start = (images + 0.02).clamp(0, 1)
    once, many, more = (
        linf_pgd(model, images, labels, eps=0.1, steps=20, step_size=0.02, start=start, draws=draws)
        for draws in (1, 8, 16)
    )
    assert torch.equal(once, many)
    assert torch.equal(once, more)


def test_efforts_are_those_of_the_study():
    assert EFFORTS["quick"].rungs == ("R1", "R3", "R5")
    assert "R8" not in EFFORTS["standard"].rungs
    assert EFFORTS["full"].rungs == NAMES
    assert effort_named(TINY) is TINY


def test_misuse():
    with pytest.raises(ValueError, match="rungs"):
        Effort(rungs=("R9",))
    with pytest.raises(ValueError, match="effort"):
        effort_named("hard")

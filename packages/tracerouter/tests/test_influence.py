from __future__ import annotations

import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hooks import capture, edit
from aisec_common.torch.sparse_autoencoder import SparseAutoencoder

from tracerouter.activity import Activity
from tracerouter.influence import Influence, batched_zero_outs, fis, select_path


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_delta_is_the_mean_absolute_change():
    clean, cut = random(3, 4, 5), random(3, 4, 5, seed=1)
    mask = torch.rand(3, 4, generator=torch.Generator().manual_seed(2)) < 0.6
    one, two = Influence(5), Influence(5)
    one.update(clean[:2], cut[:2], mask[:2])
    two.update(clean[2:], cut[2:], mask[2:])
    expected = (clean - cut)[mask].double().abs().mean(0)
    torch.testing.assert_close(one.merge(two).delta, expected, rtol=1e-6, atol=0)


def test_fis_multiplies_activity_and_change():
    plus, minus = Activity(3), Activity(3)
    plus.update(torch.tensor([[2.0, 4.0, 1.0], [0.0, 4.0, 1.0]]))
    minus.update(torch.tensor([[0.0, 4.0, 3.0]]))
    delta = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    assert fis(plus, delta).tolist() == [0.5, 8.0, 1.0]
    assert fis(plus, delta, contrast=minus).tolist() == [0.5, 0.0, 0.0]  # common and reversed units drop out


def test_paths_are_chosen_place_by_place():
    scores = {(1, "resid"): torch.tensor([0.0, 9.0, 8.0]), (2, "resid"): torch.tensor([1e-6, 0.0, 0.0])}
    path = select_path(scores, k=2)
    assert {key: units.tolist() for key, units in path.items()} == {(1, "resid"): [1, 2], (2, "resid"): [0]}


def test_a_layer_out_of_reach_gets_an_empty_path():
    path = select_path({(2, "mlp_out"): torch.zeros(4)})
    assert path[2, "mlp_out"].tolist() == []


SITE, READS = "model.layers.0", ("model.layers.1", "model.layers.2.mlp")


def zero_coordinate(hidden, unit):
    hidden = hidden.clone()
    hidden[..., unit] = 0
    return hidden


@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("stack", [1, 3, 8])
def test_batched_zero_outs_equal_one_at_a_time(latent, stack):
    model = tiny_lm(20, layers=3, width=16, heads=2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8 if weight.ndim == 2 else 1)  # fresh weights are so small that blocks barely change anything
    ids = torch.randint(20, (3, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    sae, cut, units = SparseAutoencoder(16, 32, k=8), zero_coordinate, torch.tensor([3, 0, 15, 7, 9])
    if latent:
        # the five latents most active in this batch, so that zeroing them does something
        with torch.no_grad(), capture(model, SITE) as seen:
            model(**inputs)
        units = sae.encode(seen[SITE])[mask.bool()].sum(0).topk(5).indices

        def cut(hidden, unit):
            return hidden - sae.encode(hidden)[..., unit, None] * sae.decoder[:, unit]

    reads = {READS[0]: sae.encode, READS[1]: lambda hidden: hidden}
    found = batched_zero_outs(model, inputs, source=SITE, cut=cut, units=units, reads=reads, mask=mask, stack=stack)
    with torch.no_grad(), capture(model, READS) as clean:
        model(**inputs)
    for i, unit in enumerate(units.tolist()):
        with torch.no_grad(), edit(model, {SITE: lambda h, unit=unit: cut(h, unit)}), capture(model, READS) as changed:
            model(**inputs)
        for name, encode in reads.items():
            expected = (encode(clean[name]) - encode(changed[name]))[mask.bool()].abs().mean(0).detach()
            assert expected.max() > 1e-3
            torch.testing.assert_close(found[name][i].delta.float(), expected, rtol=0, atol=1e-5)
    assert not any(module._forward_hooks for module in model.modules())


def test_rows_in_which_a_unit_is_silent_are_not_run():
    model = tiny_lm(20, layers=2, width=16, heads=2)
    ids = torch.randint(20, (4, 5), generator=torch.Generator().manual_seed(0))
    ran = []
    model.model.layers[1].register_forward_hook(lambda layer, given, hidden: ran.append(len(hidden)))

    def cut(hidden, unit):  # unit 0 speaks in the last row alone, unit 1 nowhere
        return hidden * (1 - torch.eye(4)[-1] * (unit == 0)).view(4, 1, 1)

    moved = batched_zero_outs(
        model,
        {"input_ids": ids, "use_cache": False},
        source=SITE,
        cut=cut,
        units=torch.tensor([0, 1]),
        reads={READS[0]: lambda hidden: hidden},
        mask=torch.ones(4, 5),
    )[READS[0]]
    assert ran == [4, 1]
    assert moved[0].delta.max() > 0
    assert moved[1].delta.tolist() == [0.0] * 16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Influence(0), "units must be at least 1"),
        (lambda: Influence(2).delta, "has seen no token"),
        (lambda: Influence(2).update(torch.ones(3, 2), torch.ones(4, 2)), "cut must have the shape of clean"),
        (lambda: Influence(2).update(torch.ones(3, 2), torch.full((3, 2), torch.inf)), "NaN or infinity"),
        (lambda: Influence(2).merge(Influence(3)), "other has 3 units"),
        (lambda: fis(Activity(2), torch.ones(3)), r"delta must be \[2\]"),
        (lambda: select_path({0: torch.tensor([-1.0])}), "scores of 0 must be finite and not negative"),
        (lambda: zero_outs(units=torch.tensor([])), "units is empty"),
        (lambda: zero_outs(reads={}), "reads is empty"),
        (lambda: zero_outs(stack=0), "stack must be at least 1"),
        (lambda: zero_outs(source="nowhere"), "no layer 'nowhere'"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_contrast_wants_the_same_units():
    plus, other = Activity(2), Activity(2, sign="abs")
    for activity in (plus, other):
        activity.update(torch.ones(1, 2))
    with pytest.raises(ValueError, match="contrast counts 2 units with sign 'abs'"):
        fis(plus, torch.ones(2), contrast=other)


def zero_outs(**changed):
    model = tiny_lm(5, layers=2, width=8, heads=2)
    inputs = {"input_ids": torch.ones(1, 2, dtype=torch.int64), "use_cache": False}
    arguments = {
        "source": SITE,
        "cut": zero_coordinate,
        "units": torch.tensor([0]),
        "reads": {READS[0]: lambda hidden: hidden},
        "mask": torch.ones(1, 2),
    }
    return batched_zero_outs(model, inputs, **{**arguments, **changed})

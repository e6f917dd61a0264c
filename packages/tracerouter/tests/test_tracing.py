import warnings

import pytest
import torch
from aisec_common.torch.sparse_autoencoder import SparseAutoencoder

from tracerouter.tracing import Recipe, autoencoders, trace_path

SOURCE, LATER = (0, "resid"), (1, "resid")


def identity():
    """Latents are the positive coordinates themselves."""
    eye = torch.eye(8)
    return SparseAutoencoder.from_weights(
        encoder=eye, encoder_bias=torch.zeros(8), decoder=eye, bias=torch.zeros(8), k=None
    )


def read(batch, keys, edits=None):
    """Coordinate 2 of block 0 feeds 3 and 7 of block 1; nothing else goes on, and 5 is always on."""
    here = batch
    if edits and SOURCE in edits:
        here = edits[SOURCE](here)
    there = torch.zeros_like(here)
    there[:, 3], there[:, 7], there[:, 5] = here[:, 2], 2 * here[:, 2], 9.0
    return {key: {SOURCE: here, LATER: there}[key] for key in keys}


def rows(concept):
    batch = torch.rand(2, 10, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    batch[:, :, 2] = concept
    return list(batch)


def found(**settings):
    return trace_path(
        read,
        rows(1.0),
        rows(0.0),
        source=[SOURCE],
        later=[LATER],
        saes={SOURCE: identity(), LATER: identity()},
        recipe=Recipe(k=settings.pop("k", 2), **settings),
    )


@pytest.mark.parametrize("unit", ["latent", "coordinate"])
def test_a_planted_circuit_is_found_and_unreachable_units_have_no_influence(unit):
    traced = found(unit=unit)
    assert traced.features[SOURCE].tolist()[0] == 2
    assert traced.path[SOURCE].tolist()[0] == 2
    assert traced.path[LATER].tolist() == [7, 3]
    assert (traced.delta[LATER] > 0).nonzero().flatten().tolist() == [3, 7]
    assert traced.delta[LATER][7] == pytest.approx(2)
    assert set(traced.delta) == {LATER}
    assert set(traced.saes) == ({SOURCE, LATER} if unit == "latent" else {SOURCE})


def test_printed_score_reaches_what_is_causal_too():
    assert found(contrast=False, k=8).path[LATER].tolist() == [7, 3]


def test_a_concept_nobody_shows_is_refused():
    with pytest.raises(ValueError, match="no feature is more active"):
        trace_path(
            read,
            rows(0.0),
            rows(0.0),
            source=[SOURCE],
            later=[LATER],
            saes={SOURCE: identity(), LATER: identity()},
            recipe=Recipe(k=2),
        )


def test_missing_autoencoders_are_trained_and_given_ones_kept():
    given = {SOURCE: identity()}
    recipe = Recipe(sae_width=12, sae_k=3, sae_steps=5)
    batches = [batch + torch.rand(10, 8) for batch in rows(1.0)]
    both = autoencoders(read, batches, [SOURCE, LATER], recipe, given)
    assert both[SOURCE] is given[SOURCE]
    assert (both[LATER].latents, both[LATER].k) == (12, 3)
    with pytest.raises(ValueError, match="fewer than k = 9"):
        autoencoders(read, rows(1.0), [SOURCE], Recipe(k=9), given)


def test_given_autoencoders_get_the_reach_that_trained_ones_have():
    batch = torch.rand(21, 8, generator=torch.Generator().manual_seed(1)) + 0.1
    batch[4] = 100.0  # an attention sink
    bounded = identity()
    bounded.reach.fill_(3.0)
    given = {SOURCE: identity(), LATER: bounded}

    def same(batch, keys, edits=None):
        return dict.fromkeys(keys, batch)

    autoencoders(same, [batch, batch * 50], [SOURCE, LATER], Recipe(), given)
    assert given[SOURCE].reach == 10 * batch.norm(dim=1).median(), "of the first batch"
    assert given[LATER].reach == 3, "one that it came with stays"
    codes = given[SOURCE].encode(batch)
    assert not codes[4].any()
    torch.testing.assert_close(codes[:4], batch[:4])


def test_given_autoencoders_that_explain_nothing_of_their_site_are_warned_of():
    def same(batch, keys, edits=None):
        return dict.fromkeys(keys, batch)

    rng = torch.Generator().manual_seed(0)
    batch = torch.randn(30, 8, generator=rng) + 5
    other = identity()
    other.bias.data = torch.full((8,), -9.0)  # of a model whose activations lie elsewhere
    other.decoder.data = other.decoder[:, torch.randperm(8, generator=rng)]
    with pytest.warns(UserWarning, match=r"saes: that of \(0, 'resid'\) explains none of the variance of its site"):
        autoencoders(same, [batch], [SOURCE], Recipe(), {SOURCE: other})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        autoencoders(same, [batch], [SOURCE], Recipe(), {SOURCE: identity()})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"unit": "neuron"}, "unit"),
        ({"k": 0}, "k must be at least 1"),
        ({"sae_steps": 0}, "sae_steps"),
        ({"sae_tokens": 1}, "sae_tokens"),
        ({"sae_width": 8, "sae_k": 9}, "sae_width must be at least 9"),
    ],
)
def test_recipes_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        Recipe(**settings)

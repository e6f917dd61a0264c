import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer
from aisec_common.torch.hooks import capture, edit
from aisec_common.torch.model_hash import model_hash
from aisec_common.torch.sparse_autoencoder import SparseAutoencoder
from hypothesis import given
from hypothesis import strategies as st

from tracerouter.activity import Activity
from tracerouter.controls import CONTROLS, control_path, direction_edits, remove_direction
from tracerouter.features import delta_wfs
from tracerouter.influence import fis
from tracerouter.path import Trace

D, M, BLOCKS = 16, 40, 4
WORDS = [f"w{i}" for i in range(20)]


def activity(rows):
    found = Activity(M)
    found.update(rows)
    return found


def trace(seed=0, k=5, sites=("attn_out", "mlp_out"), onset=1, **changes):
    rng = torch.Generator().manual_seed(seed)
    keys = [(layer, site) for layer in range(onset, BLOCKS) for site in sites]
    plus, minus = ({key: activity(torch.rand(30, M, generator=rng) * 2 - 1) for key in keys} for _ in range(2))
    delta = {key: torch.rand(M, generator=rng, dtype=torch.float64) for key in keys if key[0] > onset}
    scores = {
        key: delta_wfs(plus[key], minus[key]) if key[0] == onset else fis(plus[key], delta[key], minus[key])
        for key in keys
    }
    path = {key: score.argsort(descending=True)[:k] for key, score in scores.items()}
    known = {
        "onset": onset,
        "sites": sites,
        "path": path,
        "features": {key: units for key, units in path.items() if key[0] == onset},
        "saes": {key: SparseAutoencoder(D, M, k=4) for key in keys},
        "plus": plus,
        "minus": minus,
        "delta": delta,
        "blocks": BLOCKS,
        "width": D,
        "model_hash": "",
    }
    return Trace(**(known | changes))


def sets(path):
    return {key: set(units.tolist()) for key, units in path.items()}


@given(st.integers(0, 10**6), st.integers(0, 10))
def test_no_control_cuts_more_than_the_path(seed, k):
    found = trace(seed, k)
    for name in CONTROLS:
        control = control_path(name, found, seed=seed)
        assert sum(map(len, control.values())) <= found.n_units
        assert all(len(units) == len(set(units.tolist())) for units in control.values())
        found.with_path(control)  # valid indices, known places
        if name in ("random", "printed_fis"):
            assert {key: len(units) for key, units in control.items()} == {
                key: len(units) for key, units in found.path.items()
            }


def test_source_and_path_only_share_the_path_out():
    found = trace()
    source, rest = (sets(control_path(name, found)) for name in ("source", "path_only"))
    assert {key[0] for key in source} == {1}
    assert {key[0] for key in rest} == {2, 3}
    assert source | rest == sets(found.path)


def test_local_spends_the_budget_of_a_site_at_the_onset():
    found = trace(k=4)
    control = control_path("local", found)
    assert set(control) == {(1, "attn_out"), (1, "mlp_out")}
    for key, units in control.items():
        scores = delta_wfs(found.plus[key], found.minus[key])
        best = [m for m in scores.argsort(descending=True).tolist() if scores[m] > 0][: 3 * 4]
        assert set(units.tolist()) == set(best)


def test_local_leaves_units_alone_that_say_no_more_on_sensitive_prompts():
    found = trace(k=10)
    even = {key: found.minus[key] for key in found.plus}
    assert [len(units) for units in control_path("local", trace(k=10, plus=even)).values()] == [0, 0]


def test_local_of_coordinates_goes_by_the_back_projection():
    found = trace(k=2, unit="coordinate")
    control = control_path("local", found)
    for key, units in control.items():
        projection = found.saes[key].decoder[:, found.features[key]].sum(1).abs()
        assert units.tolist() == projection.argsort(descending=True)[:6].tolist()


def test_delta_wfs_takes_the_most_contrasted_units_at_every_layer():
    found = trace(k=3)
    for key, units in control_path("delta_wfs", found).items():
        assert units.tolist() == delta_wfs(found.plus[key], found.minus[key]).argsort(descending=True)[:3].tolist()


def test_printed_fis_has_no_contrast_and_the_same_source():
    found = trace(k=3)
    control = control_path("printed_fis", found)
    for key, units in control.items():
        score = found.plus[key].wfs * found.delta[key] if key[0] > 1 else found.score(key)
        assert units.tolist() == score.argsort(descending=True)[:3].tolist()


@given(st.integers(0, 10**6))
def test_random_units_are_matched_in_magnitude_outside_the_path_and_the_same_for_a_seed(seed):
    found = trace(seed, k=4)
    control = control_path("random", found, seed=seed)
    for key, units in control.items():
        assert not set(units.tolist()) & set(found.path[key].tolist())
        strength = found.plus[key].wfs
        least = strength[found.path[key]].min()
        eligible = int((strength >= least).sum()) - len(found.path[key])
        assert int((strength[units] >= least).sum()) == min(eligible, 4)
    assert sets(control) == sets(control_path("random", found, seed=seed))


def test_random_units_differ_between_seeds_and_layers():
    found = trace(k=5)
    strong = {key: found.plus[key].wfs.argsort()[10:15] for key in found.path}
    found = found.with_path(strong)  # many others are as strong
    one, two = (sets(control_path("random", found, seed=seed)) for seed in (0, 1))
    assert one != two
    assert one[2, "mlp_out"] != one[3, "mlp_out"]


def test_where_too_few_are_as_strong_the_strongest_others_come_next():
    found = trace()
    key = (2, "mlp_out")
    order = found.plus[key].wfs.argsort(descending=True)
    control = control_path("random", found.with_path({key: order[:3]}))
    assert control[key].tolist() == order[3:6].tolist()


def test_an_unknown_control():
    with pytest.raises(ValueError, match="local, source"):
        control_path("nosuch", trace())


@given(st.integers(0, 10**6))
def test_removing_a_direction_leaves_the_rest(seed):
    rng = torch.Generator().manual_seed(seed)
    v, a = torch.randn(6, generator=rng), torch.randn(3, 4, 6, generator=rng)
    left = remove_direction(v)(a)
    torch.testing.assert_close(left @ v, torch.zeros(3, 4), atol=1e-5, rtol=0)
    projector = torch.eye(6) - torch.outer(v, v) / v.square().sum()
    torch.testing.assert_close(left, a @ projector, atol=1e-5, rtol=0)
    torch.testing.assert_close(remove_direction(3 * v)(a), left, atol=1e-5, rtol=0)


@pytest.mark.parametrize("direction", [torch.zeros(3), torch.full((3,), float("nan")), torch.ones(2, 2)])
def test_no_direction(direction):
    with pytest.raises(ValueError, match="direction"):
        remove_direction(direction)


@pytest.fixture(scope="module")
def lm():
    tokenizer = word_tokenizer(WORDS)
    return tiny_lm(tokenizer, layers=BLOCKS, width=D, heads=2), tokenizer


@pytest.mark.parametrize("sites", [("resid",), ("attn_out", "mlp_out")])
def test_the_direction_is_the_difference_of_means_at_the_last_token_of_the_onset(lm, sites):
    model, tokenizer = lm
    found = trace(sites=sites, model_hash=model_hash(model))
    sensitive, matched = ["w1 w2 w3", "w1 w4", "w1 w5 w6 w7"], ["w8 w2", "w9 w4 w5"]
    edits = direction_edits(model, tokenizer, found, sensitive=sensitive, matched=matched, batch_size=2)
    assert len(edits) == 3 * len(sites)

    def last(text):
        with capture(model, "model.layers.1") as seen:
            model(tokenizer(text, return_tensors="pt").input_ids)
        return seen["model.layers.1"][0, -1]

    means = [torch.stack([last(text) for text in texts]).mean(0) for texts in (sensitive, matched)]
    v = means[0] - means[1]
    ids = tokenizer("w1 w2 w3", return_tensors="pt").input_ids
    with edit(model, edits), capture(model, list(edits)) as seen:
        model(ids)
    for hidden in seen.values():
        torch.testing.assert_close(hidden @ (v / v.norm()), torch.zeros(1, 3), atol=1e-4, rtol=0)


def test_directions_need_prompts_and_sites_of_the_residual_stream(lm):
    with pytest.raises(ValueError, match="matched"):
        direction_edits(*lm, trace(), sensitive=["w1"], matched=[])
    with pytest.raises(ValueError, match="mlp_hidden"):
        direction_edits(*lm, trace(sites=("mlp_hidden",)), sensitive=["w1"], matched=["w2"])

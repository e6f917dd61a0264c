"""Identities of the method, each against a slow or hand-made reference."""

from __future__ import annotations

import warnings

import pytest
import torch
from aisec_common.torch.hooks import capture, edit
from aisec_common.torch.sparse_autoencoder import SparseAutoencoder, train_sparse_autoencoder
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tracerouter.activity import Activity
from tracerouter.features import back_projection, delta_wfs, elbow, source_units, top_units
from tracerouter.influence import Influence, batched_zero_outs, fis, select_path
from tracerouter.onset import attention_flow, disturbance, js_scores, last_rows, onset_layer, sensitivity_scores

SEEDS = st.integers(0, 10**6)


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def activity(values, mask=None, sign="positive"):
    found = Activity(values.shape[-1], sign=sign)
    found.update(values, mask)
    return found


@given(SEEDS)
@settings(max_examples=20)
def test_wfs_of_non_negative_codes_is_their_mean(seed):
    codes = random(50, 7, seed=seed).clamp(min=0)
    found = activity(codes)
    torch.testing.assert_close(found.frequency * found.mean_active, codes.double().mean(0), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.wfs, codes.double().mean(0), rtol=1e-6, atol=1e-9)


@given(SEEDS)
@settings(max_examples=20)
def test_delta_wfs_changes_sign_with_the_sets(seed):
    plus, minus = activity(random(20, 5, seed=seed)), activity(random(30, 5, seed=seed + 1))
    assert torch.equal(delta_wfs(plus, minus), -delta_wfs(minus, plus))


@given(SEEDS, st.integers(1, 6), st.sampled_from(["left", "right"]), st.integers(0, 4))
@settings(max_examples=25)
def test_streaming_over_padded_batches_is_one_shot(seed, batch_size, side, extra):
    lengths = torch.randint(1, 6, (9,), generator=torch.Generator().manual_seed(seed)).tolist()
    prompts = [random(n, 4, seed=seed + i) for i, n in enumerate(lengths)]
    once, changed = torch.cat(prompts), torch.cat([2 * p for p in prompts])
    stream, moved = Activity(4, sign="abs"), Influence(4)
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        width = max(map(len, batch)) + extra
        values = torch.full((len(batch), width, 4), torch.nan)  # padding must not even be looked at
        mask = torch.zeros(len(batch), width, dtype=torch.int64)
        for row, prompt in enumerate(batch):
            place = slice(width - len(prompt), None) if side == "left" else slice(0, len(prompt))
            values[row, place], mask[row, place] = prompt, 1
        stream.update(values, mask)
        moved.update(values, 2 * values, mask)
    expected = activity(once, sign="abs")
    assert stream.tokens == expected.tokens
    assert torch.equal(stream.active, expected.active)
    torch.testing.assert_close(stream.total, expected.total, rtol=1e-6, atol=0)
    torch.testing.assert_close(moved.delta, (changed - once).double().abs().mean(0), rtol=1e-6, atol=0)


class Block(nn.Module):
    def __init__(self, *wires):
        super().__init__()
        self.mlp = nn.Linear(10, 10, bias=False)
        with torch.no_grad():
            self.mlp.weight.zero_()
            for to, of, weight in wires:
                self.mlp.weight[to, of] = weight

    def forward(self, hidden):
        return hidden + self.mlp(hidden)


class Planted(nn.Module):
    """The concept enters in coordinate 9; block 1 turns it into feature 5, which block 2 reads into units 3 and 7.

    Block 2 also moves coordinate 1, which every prompt has, to unit 0: active, but not on the path.
    """

    def __init__(self):
        super().__init__()
        wires = [(), ((5, 9, 1.0), (9, 9, -1.0)), ((3, 5, 2.0), (7, 5, 1.0), (0, 1, 4.0)), ((8, 1, 1.0),)]
        self.layers = nn.ModuleList(Block(*block) for block in wires)

    def forward(self, hidden):
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def planted_prompts():
    prompts = torch.zeros(4, 3, 10)
    prompts[..., 1] = 1
    sensitive = prompts.clone()
    sensitive[:, 1, 9] = 1
    return sensitive, prompts


def identity_sae():
    eye = torch.eye(10)
    return SparseAutoencoder.from_weights(
        encoder=eye, encoder_bias=torch.zeros(10), decoder=eye, bias=torch.zeros(10), k=None
    )


def planted_attention(flow):
    """The last token gives `flow` to token 1 and the rest to itself."""
    weights = torch.eye(3).repeat(1, 1, 1, 1)
    weights[0, 0, 2] = torch.tensor([0.0, flow, 1 - flow])
    return weights


def test_planted_circuit_is_recovered():
    model, sae = Planted(), identity_sae()
    sensitive, matched = planted_prompts()
    reads = [f"layers.{i}.mlp" for i in (2, 3)]

    E, M = torch.tensor([[False, False, True]]), torch.tensor([[False, True, False]])
    said, unsaid = [planted_attention(f) for f in (0.1, 0.8, 0.2, 0.1)], planted_attention(0.1)
    flows = [torch.stack([attention_flow(w, E, M) for w in ws], 1) for ws in (said, [unsaid] * 4)]
    disturb = torch.stack([disturbance(w, unsaid, E, M) for w in said], 1)
    onset = onset_layer(sensitivity_scores(*flows, disturb))
    assert onset == 1

    with torch.no_grad(), capture(model, ["layers.1", *reads]) as plus:
        model(sensitive)
    with torch.no_grad(), capture(model, ["layers.1", *reads]) as minus:
        model(matched)
    seen = activity(sae.encode(plus["layers.1"])), activity(sae.encode(minus["layers.1"]))
    features = top_units(delta_wfs(*seen))
    assert features.tolist() == [5]
    source = source_units(back_projection(sae.decoder, features))
    assert source.tolist() == [5]

    def cut(hidden, unit=5):
        return hidden - sae.encode(hidden)[..., unit, None] * sae.decoder[:, unit]

    with torch.no_grad(), edit(model, {"layers.1": cut}), capture(model, reads) as changed:
        model(sensitive)
    scores = {}
    for layer, name in zip((2, 3), reads, strict=True):
        moved = Influence(10)
        moved.update(plus[name], changed[name])
        connected = {3, 7} if layer == 2 else set()
        assert set(moved.delta.nonzero().squeeze(1).tolist()) == connected  # exactly 0 elsewhere
        scores[layer] = fis(activity(plus[name]), moved.delta, contrast=activity(minus[name]))
    path = select_path(scores)
    assert {layer: sorted(units.tolist()) for layer, units in path.items()} == {2: [3, 7], 3: []}

    edges = batched_zero_outs(
        model,
        {"hidden": sensitive},
        source="layers.1",
        cut=cut,
        units=torch.tensor([5, 1]),
        reads={reads[0]: lambda hidden: hidden},
        mask=torch.ones(4, 3),
    )
    assert [set(edge.delta.nonzero().squeeze(1).tolist()) for edge in edges[reads[0]]] == [{3, 7}, {0}]


def test_printed_score_takes_common_units_that_the_contrast_drops():
    plus, minus = activity(torch.tensor([[50.0, 1.0, 0.0]])), activity(torch.tensor([[50.0, 0.0, 0.0]]))
    delta = torch.tensor([0.1, 1.0, 0.0])
    assert fis(plus, delta).argmax() == 0
    assert top_units(fis(plus, delta, contrast=minus), k=3).tolist() == [1]


@given(st.integers(2, 20), st.integers(2, 20), st.floats(0.01, 100))
@settings(max_examples=40)
def test_elbow_of_two_straight_pieces_is_where_they_meet(steep, flat, step):
    curve = [step * (10 * (steep - i) + flat) for i in range(steep)] + [step * (flat - i) for i in range(flat + 1)]
    assert elbow(torch.tensor(curve, dtype=torch.float64), k_min=1) == steep + 1


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=30, unique=True), st.floats(1e-6, 1e6))
@settings(max_examples=40)
def test_elbow_does_not_depend_on_scale(values, scale):
    scores = torch.tensor(values, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an arithmetic progression has no elbow
        assert elbow(scores) == elbow(scores * scale)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1e9])
def test_elbow_of_a_constant_curve_is_k_min_with_a_warning(value):
    with pytest.warns(UserWarning, match="no elbow"):
        assert elbow(torch.full((9,), value), k_min=3) == 3


@pytest.mark.parametrize(
    ("curve", "onset"),
    [
        ([0.9, 0.5, 0.1, 0.2], 0),  # peak at the first block
        ([0.5, 0.65, 0.1, 0.1], 1),
        ([0.28, 0.57, 0.12, 0.09], 1),
        ([0.1, 0.2, 0.15, 0.6, 0.5, 0.4], 3),  # the first peak lies below the mean
        ([0.1, 0.7, 0.7, 0.1], 1),  # a plateau begins the peak
        ([-0.5, -0.1, -0.4, -0.6], 1),
    ],
)
def test_onset_is_the_first_peak_above_the_mean(curve, onset):
    assert onset_layer(curve) == onset


@pytest.mark.parametrize(
    ("curve", "onset"),
    [([0.1, 0.2, 0.3, 0.4], 2), ([0.1] * 3, 0), ([0.3, 0.3, 0.9], 0), ([0.0, 0.2, 0.1, 0.9], 1), ([1.0, 2.0], 0)],
)
def test_onset_without_a_peak_is_the_highest_before_the_last_with_a_warning(curve, onset):
    with pytest.warns(UserWarning, match="no local peak"):
        assert onset_layer(curve) == onset


def causal_attention(seed, rows=3, tokens=4):
    scores = random(rows, 2, tokens, tokens, seed=seed)
    return scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -torch.inf).softmax(-1)


@given(SEEDS, st.integers(1, 5))
@settings(max_examples=20)
def test_left_padding_leaves_js_alone(seed, padding):
    plus, minus, mask = causal_attention(seed), causal_attention(seed + 1), torch.ones(3, 4)
    wide = torch.zeros(3, 2, 4 + padding, 4 + padding)
    wide[:, :, :padding, 0] = 1  # what a padded query attends to is of no interest
    wide[:, :, padding:, padding:] = plus
    padded = last_rows(wide, nn.functional.pad(mask, (padding, 0)))
    rows, other = last_rows(plus, mask).mean(0), last_rows(minus, mask).mean(0)
    assert js_scores(padded.mean(0)[None], other[None]) == pytest.approx(js_scores(rows[None], other[None]), abs=1e-12)


@given(SEEDS)
@settings(max_examples=20)
def test_equal_attention_in_both_members_scores_zero(seed):
    weights = causal_attention(seed)
    E, M = torch.zeros(2, 3, 4, dtype=torch.bool).unbind(0)
    E[:, 3] = M[:, 1] = True
    flow, disturb = attention_flow(weights, E, M)[:, None], disturbance(weights, weights.clone(), E, M)[:, None]
    assert not disturb.any()
    assert sensitivity_scores(flow, flow, disturb) == [0.0]


def test_rows_that_do_not_sum_to_one_are_no_attention():
    weights, spot = causal_attention(0), torch.ones(3, 4, dtype=torch.bool)
    attention_flow(weights * (1 + 5e-5), spot, spot)
    with pytest.raises(ValueError, match="must sum to 1"):
        attention_flow(weights * (1 + 5e-4), spot, spot)


def test_decoder_columns_have_norm_one_after_every_step():
    sae, norms = SparseAutoencoder(6, 24, k=3), []
    one = torch.ones(24)
    train_sparse_autoencoder(
        sae,
        random(200, 6, seed=0) * 30,
        steps=40,
        batch_size=32,
        progress=lambda *_: norms.append(sae.decoder.detach().norm(dim=0)),
    )
    assert len(norms) == 40
    for norm in [*norms, sae.decoder.norm(dim=0)]:
        torch.testing.assert_close(norm, one, rtol=0, atol=1e-6)


@given(SEEDS, st.sets(st.integers(0, 11), min_size=1))
@settings(max_examples=20)
def test_back_projection_is_the_explicit_sum(seed, chosen):
    decoder, projection = random(5, 12, seed=seed), torch.zeros(5)
    for feature in chosen:
        projection += decoder[:, feature]
    torch.testing.assert_close(back_projection(decoder, torch.tensor(sorted(chosen))), projection)

import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hooks import capture
from aisec_common.torch.sparse_autoencoder import SparseAutoencoder
from hypothesis import given
from hypothesis import strategies as st
from tiny_router import SMALL, prompts

from tracerouter.hf_router import TraceRouter
from tracerouter.sites import find_sites
from tracerouter.suppression import Gate, Suppression, cut_coordinates, cut_latents, cut_units, source_scores


def logits(model, tokenizer, texts):
    with torch.no_grad():
        return model(**tokenizer(texts, padding=True, return_tensors="pt")).logits


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("k", [6, None])
@given(seed=st.integers(0, 20), gamma=st.floats(0, 1))
def test_cutting_latents_takes_their_decoder_columns_away(k, seed, gamma):
    rng = torch.Generator().manual_seed(seed)
    sae, a = SparseAutoencoder(8, 24, k=k, seed=seed), torch.randn(2, 3, 8, generator=rng)
    units = torch.randperm(24, generator=rng)[:5]
    cut = cut_latents(sae, units, gamma)(a)
    z = sae.encode(a).detach()
    by_hand = a.clone()
    for m in units.tolist():
        by_hand -= (1 - gamma) * z[..., m : m + 1] * sae.decoder[:, m].detach()
    torch.testing.assert_close(cut, by_hand, rtol=1e-5, atol=1e-5)
    silent = (z[..., units] == 0).all(-1)
    assert torch.equal(cut[silent], a[silent]), "a token without active units keeps its bits"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_of_the_model_is_kept_and_the_autoencoder_works_in_its_own(dtype):
    sae, a = SparseAutoencoder(8, 24, k=None), torch.randn(2, 3, 8, dtype=dtype)
    units = torch.arange(4)
    cut = cut_latents(sae, units)(a)
    exact = a.double() - (sae.selected(a.float(), units) @ sae.decoder[:, units].T).double().detach()
    assert cut.dtype == dtype
    torch.testing.assert_close(cut.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)
    assert cut_coordinates(units)(a).dtype == dtype


def test_coordinates_are_scaled_and_the_others_keep_their_bits():
    a, units = torch.randn(2, 3, 8), torch.tensor([5, 1])
    cut = cut_coordinates(units, 0.25)(a)
    rest = [i for i in range(8) if i not in (1, 5)]
    assert torch.equal(cut[..., rest], a[..., rest])
    assert torch.equal(cut[..., units], 0.25 * a[..., units])


def test_quantised_activations_are_refused(trace):
    for change in (cut_coordinates(torch.tensor([0])), cut_latents(SparseAutoencoder(4, 8, k=2), torch.tensor([0]))):
        with pytest.raises(ValueError, match=r"holds torch\.int8"):
            change(torch.zeros(1, 4, dtype=torch.int8))
    with pytest.raises(ValueError, match="saes: latents are cut with the autoencoder"):
        cut_units("latent", None, torch.tensor([0]))


@pytest.mark.parametrize("kind", ["trace", "dense"])
def test_empty_path_and_gamma_one_leave_the_logits_bit_identical(kind, model, tokenizer, request):
    found, texts = request.getfixturevalue(kind), prompts("w1")
    untouched = logits(model, tokenizer, texts)
    empty = found.with_path({key: units[:0] for key, units in found.path.items()})
    for suppression in (Suppression(model, empty), Suppression(model, found, gamma=1.0)):
        with suppression:
            assert torch.equal(logits(model, tokenizer, texts), untouched)
            assert hooks(model) == 0
    with Suppression(model, found):
        assert not torch.allclose(logits(model, tokenizer, texts), untouched)
    assert hooks(model) == 0
    assert torch.equal(logits(model, tokenizer, texts), untouched)


def test_attach_stays_until_detach_and_happens_once(model, tokenizer, trace):
    suppression = Suppression(model, trace).attach()
    once = hooks(model)
    suppression.attach()
    assert hooks(model) == once == len(trace.path)
    with Suppression(model, trace):
        pass
    suppression.detach()
    suppression.detach()
    assert hooks(model) == 0


def test_hooks_go_when_the_run_fails(model, trace):
    with pytest.raises(IndexError), Suppression(model, trace):
        model(torch.tensor([[10_000]]))
    assert hooks(model) == 0


def test_zeroing_the_source_takes_exactly_its_decoder_contribution(model, tokenizer, trace):
    names = find_sites(model, trace.sites)
    key = (trace.onset, "attn_out")
    source = trace.with_path({key: trace.path[key]})
    batch = tokenizer(prompts("w1"), padding=True, return_tensors="pt")
    with torch.no_grad(), capture(model, names[key]) as clean:
        model(**batch)
    with torch.no_grad(), Suppression(model, source), capture(model, names[key]) as cut:
        model(**batch)
    z = trace.saes[key].encode(clean[names[key]])[..., trace.path[key]]
    assert (z > 0).any()
    torch.testing.assert_close(clean[names[key]] - cut[names[key]], z @ trace.saes[key].decoder[:, trace.path[key]].T)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("unit", ["latent", "coordinate"])
def test_generation_with_a_cache_equals_recomputation(architecture, unit, tokenizer, pairs):
    model = tiny_lm(tokenizer, architecture=architecture, layers=3, width=16, heads=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    found = TraceRouter(model, tokenizer, unit=unit, onset=0, **SMALL | {"sae_steps": 5}).fit(pairs)
    batch = tokenizer([*prompts("w1")[:2], "w0 w1 w5 w3"], padding=True, return_tensors="pt")
    keep = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    keep |= {"eos_token_id": None}
    with Suppression(model, found):
        cached, anew = (model.generate(**batch, **keep, use_cache=use) for use in (True, False))
    plain = model.generate(**batch, **keep)
    assert torch.equal(cached.sequences, anew.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(anew.logits), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(cached.logits[0], plain.logits[0])


def test_gate_leaves_matched_prompts_bit_identical_also_while_generating(model, tokenizer, pairs, trace):
    router = TraceRouter(model, tokenizer, sites=trace.sites, onset=trace.onset)
    gate = router.gate(trace, [p.matched for p in pairs], 0.0)
    scores = [
        source_scores(model, trace, router.read.inputs([getattr(p, side) for p in pairs]))
        for side in ("sensitive", "matched")
    ]
    assert gate.threshold == scores[1].max().item()
    open_to = scores[0] > gate.threshold
    assert open_to.any()
    hit = pairs[int(open_to.nonzero()[0])]
    batch = tokenizer([hit.sensitive, hit.matched], padding=True, return_tensors="pt")
    keep = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    keep |= {"eos_token_id": None}
    plain = model.generate(**batch, **keep)
    with Suppression(model, trace):
        ungated = model.generate(**batch, **keep)
    with Suppression(model, trace, gate=gate):
        gated = model.generate(**batch, **keep)
    assert hooks(model) == 0
    assert torch.equal(torch.stack(gated.logits)[:, 1], torch.stack(plain.logits)[:, 1])
    torch.testing.assert_close(torch.stack(gated.logits)[:, 0], torch.stack(ungated.logits)[:, 0])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.floats(0, 0.99))
def test_gate_keeps_its_false_positive_rate_and_no_lower_threshold_does(scores, rate):
    values = torch.tensor(scores, dtype=torch.float64)
    gate = Gate.calibrate(values, rate)
    assert (values > gate.threshold).double().mean() <= rate + 1e-9
    lower = values[values < gate.threshold]
    if len(lower):
        assert (values > lower.max()).double().mean() > rate


def test_wrong_input(model, trace, tokenizer):
    with pytest.raises(ValueError, match="gamma must be in"):
        Suppression(model, trace, gamma=1.5)
    with pytest.raises(ValueError, match="blocks 4, this one has 2"):
        Suppression(tiny_lm(tokenizer, width=32), trace)
    with pytest.raises(ValueError, match="scores is empty"):
        Gate.calibrate(torch.empty(0))
    with pytest.raises(ValueError, match="false_positive_rate"):
        Gate.calibrate(torch.ones(2), 1.0)
    later = trace.with_path({key: units for key, units in trace.path.items() if key[0] > trace.onset})
    with pytest.raises(ValueError, match="no units at its onset layer"):
        source_scores(model, later, dict(tokenizer("w1 w2", return_tensors="pt")))

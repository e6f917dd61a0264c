import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hooks import edit
from aisec_common.torch.sparse_autoencoder import SparseAutoencoder
from tiny_router import SMALL, prompts
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from tracerouter.hf_router import TraceRouter
from tracerouter.pairs import Pair
from tracerouter.sites import DECODER
from tracerouter.suppression import Suppression, cut_latents, cut_units


def test_path_lies_at_the_onset_and_behind(trace, dense):
    for found in (trace, dense):
        assert {key[0] for key in found.path} == {1, 2, 3}
        assert {key[0] for key in found.delta} == {2, 3}, "FIS exists behind the onset only"
        assert all(len(units) <= 5 for units in found.path.values())
    assert set(dense.saes) == {(1, "resid")}
    assert set(trace.saes) == set(trace.plus)


def test_delta_is_the_mean_change_of_codes_prompt_by_prompt(model, tokenizer, pairs, trace):
    router = TraceRouter(model, tokenizer, sites=trace.sites, onset=1)
    sources = {
        router.names[key]: cut_latents(trace.saes[key], units) for key, units in trace.path.items() if key[0] == 1
    }
    key, changes = (3, "mlp_out"), []
    for pair in pairs:
        clean = router.read([pair.sensitive], [key])[key]
        with edit(model, sources):
            cut = router.read([pair.sensitive], [key])[key]
        changes.append((trace.saes[key].encode(clean) - trace.saes[key].encode(cut)).abs())
    torch.testing.assert_close(trace.delta[key].float(), torch.cat(changes).mean(0), rtol=1e-4, atol=1e-6)


def test_batch_size_and_padding_do_not_matter(model, tokenizer, trace):
    unequal = [
        Pair(sensitive=f"{a} w5" if i % 2 else a, matched=b)
        for i, (a, b) in enumerate(zip(prompts("w1"), prompts("w2"), strict=True))
    ]
    settings = {"sites": trace.sites, "onset": 1, "k": 5, "saes": trace.saes}
    alone, together = (TraceRouter(model, tokenizer, batch_size=n, **settings).fit(unequal) for n in (1, 12))
    for key in alone.plus:
        torch.testing.assert_close(alone.plus[key].total, together.plus[key].total, rtol=1e-5, atol=1e-5)
        assert alone.plus[key].tokens == together.plus[key].tokens
    torch.testing.assert_close(alone.delta[3, "mlp_out"], together.delta[3, "mlp_out"], rtol=1e-4, atol=1e-5)


def test_same_seed_same_path_and_given_autoencoders_are_used(model, tokenizer, pairs, trace):
    again = TraceRouter(model, tokenizer, sites=trace.sites, onset=1, **SMALL).fit(pairs)
    assert all(torch.equal(again.path[key], trace.path[key]) for key in trace.path)
    given = TraceRouter(model, tokenizer, sites=trace.sites, onset=1, saes=trace.saes, k=5).fit(pairs)
    assert all(torch.equal(given.path[key], trace.path[key]) for key in trace.path)


@pytest.mark.filterwarnings("ignore:.*no local peak:UserWarning")
@pytest.mark.parametrize("score", ["flow", "js", "entropy"])
def test_onset_is_found_and_never_the_last_block(model, tokenizer, pairs, score):
    onset, curve = TraceRouter(model, tokenizer, onset_score=score).onset_of(pairs)
    assert len(curve) == 4
    assert 0 <= onset < 3
    assert model.config._attn_implementation != "eager"


def test_begin_token_is_not_counted(model, tokenizer, pairs):
    router = TraceRouter(model, tokenizer, onset=1)
    texts = ["<s> w1 w2", "w1 w2 <s>", "w1"]
    inputs = router.read.inputs(texts)
    assert router.read.counted(inputs).sum(1).tolist() == [2, 3, 1]
    assert router.read(texts, [(0, "resid")])[0, "resid"].shape == (6, 32)


def test_edges_equal_one_run_a_unit_and_prompt(model, tokenizer, pairs, trace):
    router = TraceRouter(model, tokenizer, sites=trace.sites, onset=1, batch_size=4)
    start, end = (1, "mlp_out"), (3, "attn_out")
    edges = router.edges(trace, pairs[:6], stack=3)
    assert set(edges) == {((1, a), (layer, b)) for a in trace.sites for layer in (2, 3) for b in trace.sites}
    sae, by_hand = trace.saes[end], []
    for unit in trace.path[start]:
        changes = []
        for pair in pairs[:6]:
            clean = router.read([pair.sensitive], [end])[end]
            cut = router.read([pair.sensitive], [end], {start: cut_latents(trace.saes[start], unit.view(1))})[end]
            changes.append((sae.encode(clean) - sae.encode(cut)).abs()[:, trace.path[end]])
        by_hand.append(torch.cat(changes).mean(0))
    torch.testing.assert_close(edges[start, end].float(), torch.stack(by_hand), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="pairs is empty"):
        router.edges(trace, [])
    with pytest.raises(ValueError, match="no edges"):
        router.edges(trace.with_path({start: trace.path[start]}), pairs)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("unit", ["latent", "coordinate"])
def test_edges_on_the_residual_stream_run_the_first_blocks_once(architecture, unit, tokenizer, pairs):
    model = tiny_lm(tokenizer, architecture=architecture, layers=4, width=16, heads=2)
    router = TraceRouter(model, tokenizer, unit=unit, onset=1, **SMALL | {"sae_steps": 5})
    found, runs = router.fit(pairs), []
    blocks = [block for _, block in DECODER.blocks(model)]
    counted = blocks[0].mlp.register_forward_hook(lambda *_: runs.append(1))
    edges = router.edges(found, pairs[:5], stack=2)  # one batch
    counted.remove()
    assert len(runs) == 1
    assert not any("forward" in vars(block) for block in blocks)
    source = found.path[1, "resid"]
    for s, unit_ in enumerate(source):
        cut = {(1, "resid"): cut_units(unit, found.saes.get((1, "resid")), unit_.view(1))}
        for layer in (2, 3):
            key, changes = (layer, "resid"), []
            for pair in pairs[:5]:
                states = [router.read([pair.sensitive], [key], change)[key] for change in (None, cut)]
                codes = [found.saes[key].encode(a) if unit == "latent" else a for a in states]
                changes.append((codes[0] - codes[1]).abs()[:, found.path[key]])
            by_hand = torch.cat(changes).mean(0)
            torch.testing.assert_close(edges[(1, "resid"), key][s].float(), by_hand, rtol=1e-5, atol=1e-6)


def test_evaluation_sets_the_cut_beside_its_controls(model, tokenizer, pairs, trace):
    router = TraceRouter(model, tokenizer, sites=trace.sites, onset=1)
    seen = set()
    table = router.evaluate(
        trace,
        prompts("w1")[:3],
        prompts("w2")[:4],
        controls=["random", "source", "direction"],
        pairs=pairs,
        progress=lambda what, done, total: seen.add((what, total)),
        harms=lambda prompt, answer: True,
        serves=lambda prompt, answer: False,
        texts=prompts("w2")[:2],
        max_new_tokens=2,
    )
    assert list(table["setting"]) == ["none", "path", "random", "source", "direction"]
    assert table["units"].tolist() == [0, trace.n_units, trace.n_units, 10, 0]
    assert set(table["ASR"]) == {1.0}
    assert set(table["J"]) == {-1.0}
    assert table["perplexity"].nunique() > 2
    assert seen == {(name, 7) for name in table["setting"]}
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_that_also_sees_is_traced_in_its_language_tower(tokenizer, pairs):
    text = tiny_lm(len(tokenizer) + 1, layers=3, width=16, heads=2).config
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=4, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=len(tokenizer), image_seq_length=4)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    pixels = torch.randn(1, 3, 8, 8)

    def with_image(texts):
        batch = tokenizer(list(texts), padding=True, padding_side="right", return_tensors="pt")
        picture = torch.full((len(texts), 4), len(tokenizer))
        return {
            "input_ids": torch.cat([picture, batch["input_ids"]], 1),
            "attention_mask": torch.cat([torch.ones_like(picture), batch["attention_mask"]], 1),
            "pixel_values": pixels.expand(len(texts), -1, -1, -1),
        }

    router = TraceRouter(model, tokenizer, onset=0, encode=with_image, **SMALL | {"sae_steps": 5})
    assert len(router.names) == 3
    assert all("language_model" in name for name in router.names.values())
    found = router.fit(pairs)
    assert found.width == 16
    assert found.plus[0, "resid"].tokens == len(pairs) * (6 + 4)
    asked = with_image([pairs[0].sensitive])
    plain = model(**asked).logits
    with router.suppress(found):
        cut = model(**asked).logits
        made = model.generate(**asked, max_new_tokens=2, do_sample=False)
    assert made.shape[1] >= asked["input_ids"].shape[1]
    assert not torch.allclose(plain, cut)
    assert torch.equal(model(**asked).logits, plain)
    text_only = TraceRouter(model, tokenizer, onset_score="js")
    assert len(text_only.onset_of(pairs)[1]) == 3


def test_load_makes_sure_of_the_model(model, tokenizer, trace, tmp_path):
    trace.save(tmp_path)
    assert TraceRouter.load(model, tmp_path).n_units == trace.n_units
    with pytest.raises(ValueError, match="other weights"):
        TraceRouter.load(tiny_lm(tokenizer, layers=4, width=32, seed=9), tmp_path)


def test_a_low_precision_model_keeps_its_type(tokenizer, pairs):
    model = tiny_lm(tokenizer, layers=3, width=16, heads=2).to(torch.bfloat16)
    found = TraceRouter(model, tokenizer, onset=0, **SMALL | {"sae_steps": 5}).fit(pairs)
    batch = tokenizer(prompts("w1")[:2], padding=True, return_tensors="pt")
    with Suppression(model, found):
        assert model(**batch).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"onset": 3}, r"onset must be in 0\.\.2: nothing lies behind the last block"),
        ({"onset": -1}, "onset must be in"),
        ({"unit": "neuron"}, "unit must be 'latent' or 'coordinate'"),
        ({"k": 0}, "k must be at least 1"),
        ({"sae_width": 16, "sae_k": 32}, "sae_width must be at least 32"),
        ({"sae_width": 16, "sae_k": 8, "k": 20}, "sae_width must be at least 20"),
        ({"sites": ("logits",)}, "sites must be"),
    ],
)
def test_settings_that_cannot_be(model, tokenizer, settings, words):
    with pytest.raises(ValueError, match=words):
        TraceRouter(model, tokenizer, **settings)


def test_wrong_input(model, tokenizer, pairs):
    with pytest.raises(ValueError, match="at least 2 blocks"):
        TraceRouter(tiny_lm(tokenizer, layers=1, width=16), tokenizer)
    with pytest.raises(ValueError, match="pairs is empty"):
        TraceRouter(model, tokenizer, onset=1).fit([])
    with pytest.raises(ValueError, match="equal lengths"):
        TraceRouter(model, tokenizer).fit([Pair(sensitive="w1 w2", matched="w1")])
    for sae, words in (
        (SparseAutoencoder(16, 64, k=4), "has width 16, the site has 32"),
        (SparseAutoencoder(32, 4, k=4), "has 4 latents, fewer than k = 5"),
    ):
        with pytest.raises(ValueError, match=words):
            TraceRouter(model, tokenizer, onset=1, saes={(1, "resid"): sae}, k=5).fit(pairs)
    for place in ((4, "resid"), (1, "mlp_out")):
        with pytest.raises(ValueError, match=rf"saes: \({place[0]}, '{place[1]}'\) is not traced: there are 4 layers"):
            TraceRouter(model, tokenizer, saes={place: SparseAutoencoder(32, 64, k=4)})
    broken = tiny_lm(tokenizer, layers=3, width=16)
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="layer 1 holds NaN or infinite"):
        TraceRouter(broken, tokenizer, onset=0, **SMALL).fit(pairs)
    with pytest.raises(ValueError, match="without any token"):
        TraceRouter(model, tokenizer, onset=1, **SMALL).fit([Pair(sensitive="w1", matched="w2")], neutral=["  "])

from __future__ import annotations

import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer

from tracerouter.hf_attention import eager_attention, onset_curve
from tracerouter.onset import attention_entropy, attention_flow, disturbance, entropy_scores, js_scores, last_rows
from tracerouter.pairs import Pair

WORDS = ["how", "to", "make", "fog", "bread", "rain", "now", "please", "say"]
PAIRS = [
    Pair(sensitive="how to make fog now", matched="how to make bread now"),
    Pair(sensitive="make rain please", matched="make bread please"),
    Pair(sensitive="say fog", matched="say bread"),
]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    made = tiny_lm(word_tokenizer(WORDS), architecture=request.param, layers=3, width=16, heads=2, seed=1)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.ndim == 2 and "head" not in name:
                weight.mul_(12)  # attention of fresh weights is uniform
    return made


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(WORDS)


def weights_of(model, tokenizer, prompt):
    """Attention of every layer for one unpadded prompt, by the model's own means."""
    with torch.no_grad(), eager_attention(model):
        return model(**tokenizer(prompt, return_tensors="pt"), output_attentions=True).attentions


def one_hot(tokens, place):
    return torch.arange(tokens)[None] == place


def slow_curve(model, tokenizer, score):
    plus = [weights_of(model, tokenizer, pair.sensitive) for pair in PAIRS]
    minus = [weights_of(model, tokenizer, pair.matched) for pair in PAIRS]
    full = [torch.ones(1, layer[0].shape[-1]) for layer in plus]
    curve = []
    for layer in range(3):
        a, b = [p[layer] for p in plus], [m[layer] for m in minus]
        if score == "flow":
            marks = [
                (one_hot(x.shape[-1], x.shape[-1] - 1), one_hot(x.shape[-1], p))
                for x, p in zip(a, (3, 1, 1), strict=True)
            ]
            terms = [
                attention_flow(x, *mark) - attention_flow(y, *mark) - disturbance(x, y, *mark)
                for x, y, mark in zip(a, b, marks, strict=True)
            ]
            curve.append(torch.cat(terms).mean().item())
        elif score == "js":
            pad = lambda row: torch.nn.functional.pad(row, (5 - row.shape[-1], 0))  # noqa: E731
            rows = [sum(pad(last_rows(x, m)) for x, m in zip(part, full, strict=True)) for part in (a, b)]
            curve += js_scores(*rows)
        else:
            entropies = [
                torch.cat([attention_entropy(x, m) for x, m in zip(part, full, strict=True)]) for part in (a, b)
            ]
            curve += entropy_scores(*(e[:, None] for e in entropies))
    return curve


@pytest.mark.parametrize("score", ["flow", "js", "entropy"])
@pytest.mark.parametrize("batch_size", [2, 5])
def test_curve_equals_one_prompt_at_a_time(model, tokenizer, score, batch_size):
    curve = onset_curve(model, tokenizer, PAIRS, score=score, batch_size=batch_size)
    assert curve == pytest.approx(slow_curve(model, tokenizer, score), abs=1e-5)
    assert max(map(abs, curve)) > 1e-3


def test_model_and_tokenizer_are_left_as_they_were(tokenizer):
    model = tiny_lm(tokenizer, layers=2, width=16, heads=2)
    model.train()
    model.model.layers[1].eval()
    side, seen = tokenizer.padding_side, []
    onset_curve(model, tokenizer, PAIRS, batch_size=2, progress=lambda done, all_: seen.append((done, all_)))
    assert seen == [(2, 3), (3, 3)]
    assert model.config._attn_implementation == "sdpa"
    assert model.training
    assert not model.model.layers[1].training
    assert model.model.layers[0].self_attn.training
    assert tokenizer.padding_side == side
    assert not any(module._forward_hooks for module in model.modules())


def test_spans_of_characters_name_the_same_tokens(model, tokenizer):
    spans = [Pair(sensitive=PAIRS[0].sensitive, matched=PAIRS[0].matched, modifiers=[(12, 15)], targets=[4])]
    assert onset_curve(model, tokenizer, spans) == onset_curve(model, tokenizer, PAIRS[:1])


def test_a_model_that_hides_its_attention_is_told_apart(tokenizer, monkeypatch):
    model = tiny_lm(tokenizer, layers=2, width=16, heads=2)
    monkeypatch.setattr(type(model), "set_attn_implementation", lambda self, kind: None)
    with pytest.raises(ValueError, match=r"block 0 returns no attention weights .*attn_implementation='eager'"):
        onset_curve(model, tokenizer, PAIRS)


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ([], {}, "pairs is empty"),
        (PAIRS, {"score": "guess"}, "score must be 'flow', 'js' or 'entropy'"),
        (PAIRS, {"batch_size": 0}, "batch_size must be at least 1"),
        ([Pair(sensitive="say fog now", matched="say bread")], {}, "3 tokens and matched 2"),
    ],
)
def test_errors_name_what_is_wrong(tokenizer, pairs, options, message):
    model = tiny_lm(tokenizer, layers=2, width=16, heads=2)
    with pytest.raises(ValueError, match=message):
        onset_curve(model, tokenizer, pairs, **options)


def test_unequal_lengths_are_fine_for_js_but_told(tokenizer):
    model = tiny_lm(tokenizer, layers=2, width=16, heads=2)
    with pytest.warns(UserWarning, match="3.0 tokens on average and matched ones 2.0"):
        curve = onset_curve(model, tokenizer, [Pair(sensitive="say fog now", matched="say bread")], score="js")
    assert len(curve) == 2


def test_a_tokenizer_needs_a_pad_token():
    bare = word_tokenizer(WORDS)
    bare.pad_token = None
    with pytest.raises(ValueError, match="no pad token"):
        onset_curve(tiny_lm(len(bare), layers=2, width=16, heads=2), bare, PAIRS)

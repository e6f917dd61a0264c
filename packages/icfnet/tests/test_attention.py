import torch

from icfnet.attention import Aggregator, GatedAttentionPooling, SoftmaxCoAttention, TokenMixer
from icfnet.config import ICFNetConfig

CONFIG = ICFNetConfig(width=16, heads=2)


def bag():
    tokens = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    return tokens, torch.arange(5) < torch.tensor([5, 2, 0])[:, None]


def test_padding_is_seen_by_nobody():
    tokens, mask = bag()
    other = tokens.masked_fill(~mask[:, :, None], 7.0)
    for module in (Aggregator(CONFIG), Aggregator(CONFIG, mixing=False), Aggregator(CONFIG, isolated=True)):
        module.eval()
        torch.testing.assert_close(module(tokens, mask)[:2], module(other, mask)[:2])
        assert module(tokens, mask).isfinite().all()  # the empty bag too
        torch.testing.assert_close(module(tokens, mask)[1:2], module(tokens[1:2, :2], mask[1:2, :2]))


def test_isolated_tokens_do_not_see_each_other():
    tokens, _ = bag()
    mask = torch.ones(3, 5, dtype=torch.bool)
    changed = tokens.clone()
    changed[:, 4] += 1
    for isolated in (True, False):
        mixer = TokenMixer(CONFIG, isolated=isolated).eval()
        same = torch.allclose(mixer(tokens, mask)[:, :4], mixer(changed, mask)[:, :4], atol=1e-6)
        assert same == isolated
    alone = mixer(tokens.flatten(0, 1)[:, None], mask.flatten()[:, None])
    mixer.isolated = True
    torch.testing.assert_close(mixer(tokens, mask), alone.view_as(tokens), rtol=1e-5, atol=1e-5)


def test_pooling_is_a_weighted_mean():
    tokens, mask = bag()
    pool = GatedAttentionPooling(16)
    pooled = pool(tokens, mask)
    real = tokens[1, :2]
    score = pool.score(torch.tanh(pool.tanh(real)) * torch.sigmoid(pool.sigmoid(real)))
    torch.testing.assert_close(pooled[1], (score.softmax(0) * real).sum(0))


def test_softmax_co_attention_leaves_padding_out():
    tokens, mask = bag()
    attend = SoftmaxCoAttention(16).eval()
    queries = torch.randn(3, 6, 16)
    found = attend(tokens, queries, mask)
    assert found.shape == (3, 6, 16)
    torch.testing.assert_close(found[1:2], attend(tokens[1:2, :2], queries[1:2], mask[1:2, :2]))
    assert found.isfinite().all()

import torch

from icfnet.config import ICFNetConfig
from icfnet.fusion import Fusion


def test_missing_vectors_change_nothing():
    vectors = torch.randn(2, 5, 16)
    present = torch.tensor([[True] * 5, [True, False, True, False, True]])
    for fusion in ("unification", "concat"):
        module = Fusion(ICFNetConfig(width=16, heads=2, fusion=fusion)).eval()
        fused, tokens = module(vectors, present)
        other, _ = module(vectors.masked_fill(~present[:, :, None], 3.0), present)
        torch.testing.assert_close(fused, other)
        assert not tokens[1, [1, 3]].any()


def test_only_unification_mixes():
    vectors, present = torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)
    concat = Fusion(ICFNetConfig(width=16, heads=2, fusion="concat")).eval()
    fused, tokens = concat(vectors, present)
    assert torch.equal(tokens, vectors)
    torch.testing.assert_close(fused, concat.project(vectors.flatten(1)))
    assert Fusion(ICFNetConfig(width=16, heads=2)).mixer is not None
    assert Fusion(ICFNetConfig(width=16, heads=2, modalities=("genes",))).mixer is None

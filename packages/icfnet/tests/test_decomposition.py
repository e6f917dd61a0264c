import torch

from icfnet.decomposition import ResidualDecomposition, masked_mean, orthogonality_loss


def test_masked_mean():
    tokens = torch.randn(2, 4, 3)
    mask = torch.tensor([[True, True, False, False], [False] * 4])
    torch.testing.assert_close(masked_mean(tokens, mask), torch.stack([tokens[0, :2].mean(0), torch.zeros(3)]))


def test_residual_is_what_is_left():
    rod = ResidualDecomposition(4, dropout=0.3).eval()
    patches, mask = torch.randn(2, 5, 4), torch.ones(2, 5, dtype=torch.bool)
    a, b = torch.randn(2, 4), torch.randn(2, 4)
    r = rod.pooled(patches.mean(1))
    path, residual = rod(patches, mask, [a, b])
    torch.testing.assert_close(residual, r - a - b)
    torch.testing.assert_close(path, rod.project(r + r - a - b))


def test_without_decomposition_the_bags_change_nothing():
    plain = ResidualDecomposition(4, dropout=0.0, residual=False)
    patches, mask = torch.randn(2, 5, 4), torch.ones(2, 5, dtype=torch.bool)
    path, residual = plain(patches, mask, [torch.randn(2, 4)])
    torch.testing.assert_close(path, plain.project(plain.pooled(patches.mean(1))))
    assert not residual.any()


def test_loss_is_symmetric_in_sign():
    o, h = torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(orthogonality_loss(o, [h]), orthogonality_loss(o, [-h]))
    assert torch.equal(orthogonality_loss(o, []), torch.zeros(3))

import torch

from icfnet.encoders import GeneEncoder, PatchEncoder, StructuredEncoder, TextEncoder


def test_patches_are_projected_one_by_one():
    encoder = PatchEncoder(6, 4, dropout=0.25).eval()
    patches = torch.randn(2, 3, 6)
    linear = encoder[0]
    torch.testing.assert_close(encoder(patches), (patches @ linear.weight.T + linear.bias).relu())


def test_each_gene_group_has_a_network_of_its_own():
    encoder = GeneEncoder({"a": 3, "b": 5}, 4, dropout=0.25).eval()
    groups = [torch.randn(2, 3), torch.randn(2, 5)]
    tokens = encoder(groups)
    assert tokens.shape == (2, 2, 4)
    torch.testing.assert_close(encoder([groups[0], groups[1] + 1])[:, 0], tokens[:, 0])
    assert not torch.allclose(encoder([groups[0], groups[1] + 1])[:, 1], tokens[:, 1])
    assert [type(layer).__name__ for layer in encoder.networks[0]] == ["Linear", "ELU", "AlphaDropout"] * 3


def test_the_adapter_is_a_share_of_the_embedding():
    encoder = TextEncoder(8, 4).eval()
    e = torch.randn(2, 2, 8)
    first, second = encoder.adapter[0], encoder.adapter[2]
    assert first.bias is None
    assert first.weight.shape == (2, 8)  # a quarter of the width
    adapted = ((e @ first.weight.T).relu() @ second.weight.T).relu()
    torch.testing.assert_close(encoder(e), encoder.project(0.2 * adapted + 0.8 * e))


def test_structured_facts_pass_a_hidden_layer_of_64():
    encoder = StructuredEncoder(5, 4).eval()
    facts = torch.randn(3, 5)
    hidden = torch.nn.functional.elu(facts @ encoder[0].weight.T + encoder[0].bias)
    assert hidden.shape == (3, 64)
    torch.testing.assert_close(encoder(facts), torch.nn.functional.elu(hidden @ encoder[3].weight.T + encoder[3].bias))

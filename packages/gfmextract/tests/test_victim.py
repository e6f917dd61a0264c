import pytest
import torch
from small_graphs import made_graph
from torch import nn

from gfmextract.pyg_backbones import make_backbone
from gfmextract.pyg_ego import ego_graphs
from gfmextract.victim import encode_egos, evaluating


@pytest.fixture
def egos():
    return ego_graphs(made_graph(70, 0.1, 0), torch.arange(70))


class Mean:
    """Not a module, and answers with a feature mean."""

    def encode_graph(self, batch):
        made = torch.zeros(batch.num_graphs, batch.x.shape[1])
        return made.index_add(0, batch.batch, batch.x) / batch.ptr.diff().unsqueeze(1)


@pytest.mark.parametrize("name", ["gps", "sage", "gin"])
def test_batches_of_1_and_of_64_agree(egos, name):
    torch.manual_seed(0)
    encoder = make_backbone(name, 4, 3, hidden=16).train()
    one, many = (encode_egos(encoder, egos, size) for size in (1, 64))
    torch.testing.assert_close(one, many, rtol=0, atol=1e-5)


def test_any_object_with_encode_graph_will_do(egos):
    expected = torch.stack([ego.x.mean(0) for ego in egos])
    torch.testing.assert_close(encode_egos(Mean(), egos, 7), expected)


def test_answers_can_be_targets_of_a_training(egos):
    z = encode_egos(Mean(), egos)
    weight = nn.Parameter(torch.ones(4))
    ((weight * z - z.flip(0)) ** 2).sum().backward()
    assert not z.is_inference()
    assert not z.requires_grad
    assert torch.isfinite(weight.grad).all()


def test_modes_are_put_back_part_by_part():
    encoder = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).train()
    encoder[0].eval()
    with evaluating(encoder):
        assert not any(part.training for part in encoder.modules())
    assert [part.training for part in encoder.modules()] == [True, False, True]


def test_wrong_answers_are_refused(egos):
    class Wrong:
        def __init__(self, answer):
            self.answer = answer

        def encode_graph(self, batch):
            return self.answer(batch.num_graphs)

    with pytest.raises(ValueError, match=r"must answer \[20, d\]"):
        encode_egos(Wrong(lambda count: torch.zeros(count + 1, 2)), egos, 20)
    with pytest.raises(ValueError, match=r"NaN or infinity to ego graph 0"):
        encode_egos(Wrong(lambda count: torch.full((count, 2), torch.nan)), egos)
    with pytest.raises(ValueError, match="batch_size"):
        encode_egos(Mean(), egos, 0)

import pytest
import torch
from small_cohort import small_cohort, small_inputs, small_network

from icfnet.batches import Batch, InputSizes
from icfnet.config import ICFNetConfig
from icfnet.likelihood import balanced_nll
from icfnet.network import ICFNet, icfnet_loss

CPU = torch.device("cpu")
ROWS = torch.arange(8)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ot": False},
        {"rod": False},
        {"fusion": "concat"},
        {"fusion": "late"},
        {"aux_heads": "post"},
        {"aux_heads": "none"},
        {"token_mixing": "isolated"},
        {"modalities": ("wsi",)},
        {"modalities": ("genes",)},
        {"modalities": ("text",)},
        {"modalities": ("wsi", "genes"), "rod": False, "fusion": "concat", "loss": "nll"},
        {"modalities": ("genes", "text"), "n_bins": 6},
    ],
)
def test_every_switch_trains_every_parameter(changes):
    network = small_network(**changes).train()
    inputs, _ = small_inputs(small_cohort())
    output = network(inputs.batch(ROWS, CPU))
    config, tokens = network.config, len(network.config.tokens)
    assert output.logits.shape == (8, config.n_bins)
    assert output.present.shape == (8, tokens)
    assert (output.auxiliary is None) == (config.aux_heads == "none")
    icfnet_loss(output, ROWS % 4, ROWS % 2 == 0, config).backward()
    unused = [name for name, weight in network.named_parameters() if weight.grad is None]
    assert not unused


def test_loss_is_the_written_sum():
    network = small_network()
    inputs, _ = small_inputs(small_cohort(bags=(None,) * 4 + small_cohort().bags[4:]))
    output = network(inputs.batch(ROWS, CPU))
    label, event = ROWS % 4, ROWS % 2 == 0
    slow = 0.0
    for i in range(8):
        one = (label[i : i + 1], event[i : i + 1])
        slow += balanced_nll(output.logits[i : i + 1], *one).item() + 0.1 * output.orthogonality[i].item()
        for t, there in enumerate(output.present[i].tolist()):
            slow += 0.1 * balanced_nll(output.auxiliary[i, t][None], *one).item() * there
    assert icfnet_loss(output, label, event, network.config).item() == pytest.approx(slow / 8, rel=1e-5)
    assert output.orthogonality[:4].tolist() == [0] * 4  # no slide, nothing to decompose
    assert output.present[0].tolist() == [True, False, False, False, True]


def test_heads_after_unification_read_its_tokens():
    network = small_network(aux_heads="post")
    batch = small_inputs(small_cohort())[0].batch(ROWS, CPU)
    seen = []
    network.fusion.register_forward_hook(lambda module, given, out: seen.append(out[1]))
    output = network(batch)
    expected = torch.stack([head(seen[0][:, t]) for t, head in enumerate(network.aux_heads)], dim=1)
    torch.testing.assert_close(output.auxiliary, expected)


def test_a_modality_without_a_size_or_an_input():
    with pytest.raises(ValueError, match="modality 'genes' of the configuration has no input size"):
        ICFNet(ICFNetConfig(modalities=("wsi", "genes")), InputSizes(patch=5))
    network = ICFNet(ICFNetConfig(modalities=("genes",), width=8, heads=2), InputSizes(genes={"a": 2}))
    with pytest.raises(ValueError, match="batch: genes must be given"):
        network(Batch())

import torch
from aisec_common.torch.linf_pgd import linf_pgd
from small_nets import images, labels, net
from torch import nn

from interference_nn import InterferenceNet
from interference_nn.backbone import Backbone
from interference_nn.draws import keyed_draws
from interference_nn.net import CHUNK


def test_chunks_change_nothing(monkeypatch):
    made = net(draws=5, mode="keyed", key=b"k")
    x = images(7)
    whole = made(x)
    monkeypatch.setitem(CHUNK, "cpu", 5 * 64 * 2)  # two images at once
    seen = []
    handle = made.backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    assert torch.allclose(made(x), whole, atol=1e-6)
    handle.remove()
    assert seen == [10, 10, 10, 5]


def test_in_training_the_batch_is_not_cut(monkeypatch):
    made = net(draws=2).train()
    monkeypatch.setitem(CHUNK, "cpu", 1)
    seen = []
    made.backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    made(images(7))
    assert seen == [14]


def test_agreement_is_the_share_of_recognised_backgrounds():
    made = net(draws=6, mode="fixed", alpha=1.0)
    with torch.no_grad():
        made.background_head.weight.zero_()
        made.background_head.bias.copy_(torch.tensor([0.0, 9.0, 0.0, 0.0]))  # always says class 1
    log_p, agreement = made.with_agreement(images())
    assert torch.equal(log_p, made(images()))
    share = (made.bank_labels[:6] == 1).float().mean()
    assert torch.allclose(agreement, share.expand(6))
    assert net(head="extra_class").with_agreement(images())[1].isnan().all()


def test_an_attacker_may_leave_the_interference_out():
    for interference in ("superpose", "mosaic", "channel"):
        made = net(interference=interference)
        plain = net()  # the same backbone and head, not widened
        assert torch.allclose(made.without_interference(images()), plain.without_interference(images()), atol=1e-5)


def test_a_variant_shares_its_weights():
    made = net(draws=4)
    other = made.variant(mode="keyed", key=b"a", draws=2)
    assert (made.settings.mode, made.settings.draws, made.key) == ("random", 4, None)
    with torch.no_grad():
        made.target_head.bias[0] += 5
    assert torch.equal(other.target_head.bias, made.target_head.bias)
    x = images()
    drawn = keyed_draws(x, b"a", 2, 16)
    wanted = made.logits_of(x, drawn)[0].softmax(-1).mean(1)
    assert torch.allclose(other(x).exp(), wanted, atol=1e-6)
    leaked = other(x)
    other.key = b"b"
    assert not torch.allclose(other(x), leaked, atol=1e-4)


def test_a_pretrained_head_is_kept_where_the_classes_match():
    weight, bias = torch.randn(5, 64), torch.randn(5)
    backbone = Backbone(nn.Flatten(), dim=64, channels=1, pretrained=(weight, bias))
    assert torch.equal(net(backbone).target_head.weight, 10 * weight)
    assert net(backbone, classes=4).target_head.weight.shape == (4, 64)


def test_heads_follow_from_the_seed_alone():
    first, second = (InterferenceNet.from_backbone(nn.Flatten(), classes=3, bank=net().bank) for _ in range(2))
    assert torch.equal(first.background_head.weight, second.background_head.weight)


def test_extra_classes_predict_among_the_real_ones_without_a_draw():
    made = net(head="extra_class")
    assert made.deterministic
    assert not made.random
    x = images()
    assert torch.equal(made(x), made.target_head(made.backbone(x)).log_softmax(1))
    assert torch.allclose(made.once(x), made(x), atol=1e-6)
    assert torch.allclose(made.probabilities_over(x, made.bank_images), made(x).exp(), atol=1e-6)


def test_an_attack_runs_through_every_call_and_leaves_the_net_alone():
    made = net(draws=3).train()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    for model in (made, made.once, made.without_interference):
        found = linf_pgd(model, images(), labels(), eps=0.1, steps=3)
        assert (found - images()).abs().max() <= 0.1 + 1e-6
    assert all(torch.equal(before[name], tensor) for name, tensor in made.state_dict().items())
    assert made.training

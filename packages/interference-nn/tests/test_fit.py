import pytest
import torch
from small_nets import CLASSES, bank, images, labels, net

from interference_nn import InterferenceNet, ProceduralBackgrounds, fit
from interference_nn.agreement import agreement_auroc
from interference_nn.digits import load_digits
from interference_nn.network import conv_backbone

BATCHES = [(images(20, seed=i), labels(20)) for i in range(3)]


def state(made):
    return {name: tensor.clone() for name, tensor in made.state_dict().items()}


@pytest.fixture(scope="module")
def digits():
    data = load_digits(0)
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(0))[:1000]
    batches = [(data.train_images[part], data.train_labels[part]) for part in order.split(100)]
    torch.manual_seed(0)
    bank = ProceduralBackgrounds(n=64, classes=8, size=8, channels=1)
    made = InterferenceNet.from_backbone(conv_backbone(width=12), classes=10, bank=bank)
    history = fit(made, batches, head_epochs=0, finetune_epochs=8, lr=0.01, optimizer="adamw", schedule="onecycle")
    return made, history, data


def test_it_learns_digits_and_backgrounds(digits):
    made, history, data = digits
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        log_p, agreement = made.with_agreement(data.test_images, generator)
    assert (log_p.argmax(1) == data.test_labels).float().mean() > 0.8
    assert agreement.mean() > 0.2  # chance is 1/8
    assert history[-1].loss < history[0].loss
    noise = torch.rand(data.test_images.shape, generator=generator)
    assert agreement_auroc(made, data.test_images, noise, generator) > 0.5


def test_a_step_costs_one_pass_each_way(digits):
    _, history, _ = digits
    assert {epoch.passes_per_image for epoch in history} == {2.0}
    heads, whole = fit(net(), BATCHES, finetune_epochs=1)
    assert (heads.passes_per_image, whole.passes_per_image) == (1.0, 2.0)
    _, attacked = fit(net(), BATCHES, finetune_epochs=1, adversarial=True, attack_steps=3, eps=0.1)
    assert attacked.passes_per_image == 8.0


@pytest.mark.parametrize("interference", ["superpose", "mosaic", "channel"])
@pytest.mark.parametrize("head", ["two", "joint"])
def test_every_combination_moves_backbone_and_both_heads(interference, head):
    made = net(interference=interference, head=head, alpha="random")
    before = state(made)
    history = fit(made, BATCHES, head_epochs=1, finetune_epochs=1, lr=0.01)
    after = state(made)
    for name in ("backbone.features.layer1.0.weight", "target_head.weight", "background_head.weight"):
        assert not torch.equal(before[name], after[name])
    assert [epoch.stage for epoch in history] == ["heads", "all"]
    assert not made.training


def test_extra_classes_are_told_from_real_ones():
    made = net(head="extra_class", weight=1.0)
    x = images(40, seed=9) * 0.2  # dark, unlike the bank
    history = fit(made, [(x, labels(40))] * 10, head_epochs=0, finetune_epochs=4, lr=0.01, optimizer="adamw")
    assert history[0].passes_per_image == 4.0  # as many backgrounds as images
    with torch.no_grad():
        both = torch.cat(
            [head(made.backbone(made.bank_images)) for head in (made.target_head, made.background_head)], 1
        )
    assert (both.argmax(1) >= CLASSES).float().mean() > 0.9


def test_a_seed_decides_and_a_folder_resumes(tmp_path):
    first, second, other, resumed = net(), net(), net(), net()
    histories = [fit(made, BATCHES, seed=seed) for made, seed in ((first, 0), (second, 0), (other, 1))]
    assert histories[0] == histories[1] != histories[2]

    def stop(stage, done, total):
        if stage == "all" and done == 5:
            raise KeyboardInterrupt

    broken = net()
    with pytest.raises(KeyboardInterrupt):
        fit(broken, BATCHES, folder=tmp_path, progress=stop)
    assert fit(resumed, BATCHES, folder=tmp_path) == histories[0]
    assert all(torch.equal(a, b) for a, b in zip(state(first).values(), state(resumed).values(), strict=True))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with both stages of a plain fit."""
    folder = tmp_path_factory.mktemp("fit")
    return folder, fit(net(), BATCHES, finetune_epochs=1, folder=folder)


@pytest.mark.parametrize(
    ("network", "changes", "words"),
    [
        ({}, {"adversarial": True}, r"all\.pt.*with other adversarial, eps, attack_steps\)"),
        ({}, {"label_smoothing": 0.0}, r"heads\.pt.*with other label_smoothing\)"),
        ({}, {"head_epochs": 0}, r"all\.pt.*with other head_epochs\)"),
        ({"head": "joint"}, {}, r"with other head\)"),
        ({"alpha": 0.4}, {}, r"with other alpha\)"),
        ({"alpha": "random"}, {}, r"with other alpha\)"),
        ({"weight": 0.1}, {}, r"with other weight\)"),
        ({"interference": "mosaic"}, {}, r"with other interference\)"),
        ({"bank": bank(seed=1)}, {}, r"with other bank\)"),
    ],
)
def test_a_folder_of_another_training_is_refused_by_name(kept, network, changes, words):
    folder, _ = kept
    with pytest.raises(ValueError, match=words) as caught:
        fit(net(**network), BATCHES, **{"finetune_epochs": 1, "folder": folder, **changes})
    assert "choose another folder" in str(caught.value)


def test_what_does_not_train_may_change(kept):
    folder, history = kept
    for network, changes in (({}, {"eps": 0.5}), ({"draws": 2, "mode": "fixed"}, {})):
        assert fit(net(**network), BATCHES, finetune_epochs=1, folder=folder, **changes) == history


def test_the_radius_counts_where_it_attacks(tmp_path):
    told = {"finetune_epochs": 1, "head_epochs": 0, "adversarial": True, "folder": tmp_path}
    fit(net(), BATCHES, **told, eps=0.1)
    with pytest.raises(ValueError, match=r"with other eps\)"):
        fit(net(), BATCHES, **told, eps=0.2)


def test_weights_of_a_named_backbone_count(tmp_path):
    backbone = conv_backbone(width=4)
    first, second = net(backbone), net(backbone)
    first.backbone.weights, second.backbone.weights = None, "IMAGENET1K_V2"
    fit(first, BATCHES, finetune_epochs=0, folder=tmp_path)
    with pytest.raises(ValueError, match=r"with other weights\)"):
        fit(second, BATCHES, finetune_epochs=0, folder=tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adversarial": True, "eps": 0.0}, "eps"),
        ({"adversarial": True, "attack_steps": 4}, "attack_steps"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"lr": 0.0}, "lr"),
        ({"finetune_epochs": -1}, "epochs"),
    ],
)
def test_wrong_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        fit(net(), BATCHES, **changes)


def test_wrong_batches_are_refused():
    for batch, words in (
        ((images() + 1, labels()), "images must lie"),
        ((images(), labels() - 1), "labels must lie"),
        ((images(size=4), labels()), "make the bank"),
    ):
        with pytest.raises(ValueError, match=words):
            fit(net(), [batch])
    with pytest.raises(TypeError, match="labels"):
        fit(net(), [(images(), labels().float())])

import pytest
import torch
from aisec_common.data import is_fetched

pytest.importorskip("timm")
pytest.importorskip("skimage")

from aisec_common.torch import timm_efficientnet_lite0
from aisec_common.torch.timm_efficientnet_lite0 import CHECKPOINT, FILE, efficientnet_lite0


def square(photograph):
    x = torch.from_numpy(photograph).permute(2, 0, 1)[None] / 255
    side = min(x.shape[2:])
    top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
    x = x[:, :, top : top + side, left : left + side]
    return torch.nn.functional.interpolate(x, (224, 224), mode="bilinear", antialias=True).clamp(0, 1)[0]


def test_what_is_not_fetched_is_told_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("AISEC_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"aisec data fetch {CHECKPOINT}"):
        efficientnet_lite0()


def test_weights_go_over_in_their_order_and_others_are_refused(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    monkeypatch.setattr(timm_efficientnet_lite0, "checkpoint_path", lambda name: tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = timm.create_model("tf_efficientnet_lite0").state_dict()
    torch.save({f"other.{number}": tensor for number, tensor in enumerate(state.values())}, tmp_path / FILE)
    loaded = efficientnet_lite0().state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    torch.save({"other": torch.zeros(2)}, tmp_path / FILE)
    with pytest.raises(ValueError, match="layout of tf_efficientnet_lite0"):
        efficientnet_lite0()


@pytest.mark.checkpoint
@pytest.mark.skipif(not is_fetched(CHECKPOINT), reason=f"run `aisec data fetch {CHECKPOINT}`")
def test_it_knows_a_cat_and_a_coffee():
    from skimage import data

    model = efficientnet_lite0().eval()
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        p = model((torch.stack([square(data.chelsea()), square(data.coffee())]) - mean) / std).softmax(1)
    assert p.argmax(1).tolist() == [285, 967]  # Egyptian cat, espresso
    assert p.amax(1).min() > 0.3

import pytest
import torch
from networks import staged
from safetensors.torch import load_file

from uadat.checkpoint import Checkpoint, kept_weights


def written(folder, configuration):
    net = staged()
    checkpoint = Checkpoint(folder, configuration)
    checkpoint.write({"optimizer": {}}, kept_weights(net), kept_weights(net), [{"epoch": 0.0}])
    return net


def test_there_and_back(tmp_path):
    assert Checkpoint(tmp_path / "new", {"seed": 1}).read() is None
    net = written(tmp_path, {"seed": 1, "loss": {"eps": 0.1, "step": None}})
    state = Checkpoint(tmp_path, {"seed": 1, "loss": {"eps": 0.1, "step": None}}).read()
    assert state["history"] == [{"epoch": 0.0}]
    for name, value in net.state_dict().items():
        assert torch.equal(state["model"][name], value)
        assert torch.equal(load_file(tmp_path / "best.safetensors")[name], value)


def test_another_training_is_refused(tmp_path):
    written(tmp_path, {"seed": 1, "epochs": 3})
    with pytest.raises(ValueError, match="another seed; take a new folder"):
        Checkpoint(tmp_path, {"seed": 2, "epochs": 3}).read()


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(ValueError, match="is no state of a training"):
        Checkpoint(tmp_path, {}).read()


def test_kept_weights_are_copies():
    net = staged()
    kept = kept_weights(net)
    with torch.no_grad():
        net.head.bias += 1
    assert not torch.equal(kept["head.bias"], net.head.bias)

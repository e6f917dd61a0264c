import pytest
import timm
import torch


@pytest.fixture
def random_lite0(monkeypatch):
    """Random weights in the place of the checkpoint's, which tests must not need; the model that has them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = timm.create_model("tf_efficientnet_lite0").state_dict()

    def loaded():
        model = timm.create_model("tf_efficientnet_lite0")
        model.load_state_dict(weights)
        return model

    monkeypatch.setattr("uadat.timm_classifier.efficientnet_lite0", loaded)
    return loaded()

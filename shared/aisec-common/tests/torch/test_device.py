from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from aisec_common.torch.device import resolve_device  # noqa: E402


def test_auto_takes_the_best_device_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert resolve_device() == resolve_device("auto") == torch.device(expected)


def test_a_present_device_comes_back_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cuda") == torch.device("cuda")
    with pytest.raises(ValueError, match="device 'cuda:2' is not here: torch sees 2 cuda devices"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "meta", "cuda", "mps"])
def test_wrong_and_absent_devices_are_refused_in_one_line(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^device ") as refused:
        resolve_device(device)
    assert "\n" not in str(refused.value)


@pytest.mark.gpu
def test_a_real_gpu_is_found() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no cuda device here")
    assert torch.ones(1, device=resolve_device("auto")).device.type == "cuda"

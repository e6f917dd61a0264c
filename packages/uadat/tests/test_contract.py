import subprocess
import sys
from pathlib import Path

import pytest
import torch
from aisec_common.testing import RoomContract

from uadat import ATLoss, MARTLoss, RobustTrainer, StandardLoss, TRADESLoss, UADLoss, robust_report
from uadat.digits import digits
from uadat.image_splits import loader
from uadat.network import small_resnet

IMAGES, LABELS = torch.rand(4, 1, 8, 8), torch.arange(4)


def net():
    return small_resnet(10, seed=0)


class Pair(type(net())):
    """Returns a tuple, as models with auxiliary outputs do."""

    def forward(self, images):
        return super().forward(images), None


def loss(**settings):
    return UADLoss(**{"eps": 0.1, "layer": "stage2", "steps": 1, **settings})


QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.py"
OFFLINE = f"""
import runpy, socket
def refused(*_): raise OSError("the quickstart must not use the network")
socket.socket.connect = refused
runpy.run_path({str(QUICKSTART)!r}, run_name="__main__")
"""

OFF = {"samples": 0, "refine": False, "stat": 0.0, "iga": 0.0}
ATTACKED = (loss(), loss(**OFF), TRADESLoss(0.1), ATLoss(0.1), MARTLoss(0.1), StandardLoss())


class TestContract(RoomContract):
    room = "uadat"
    wrong_inputs = (
        (lambda: UADLoss(0.0), "eps"),
        (lambda: TRADESLoss(-1.0), "eps"),
        (lambda: ATLoss(float("nan")), "eps"),
        (lambda: loss(samples=-1), "samples"),
        (lambda: loss(iga_mode="nosuch"), "iga_mode"),
        (lambda: loss(cov="nosuch"), "cov"),
        (lambda: loss(layer="nosuch")(net(), IMAGES, LABELS), "stage1"),
        (lambda: loss()(net(), IMAGES * 255, LABELS), r"\[0, 1\]"),
        (lambda: loss()(net(), IMAGES * float("nan"), LABELS), "NaN"),
        (lambda: loss()(net(), IMAGES, LABELS + 7), "labels"),
        (lambda: loss()(net(), IMAGES[:1], LABELS[:1]), "batch"),
        (lambda: StandardLoss()(net(), IMAGES, LABELS + 7), "labels"),
        (lambda: MARTLoss(0.1)(net(), IMAGES - 1, LABELS), r"\[0, 1\]"),
        *((lambda each=each: each(Pair(10), IMAGES, LABELS), "model must return") for each in ATTACKED),
        (lambda: RobustTrainer(net(), loss(), epochs=0), "epochs"),
        (lambda: RobustTrainer(net(), loss(), epochs=1, optimizer={"nosuch": 1.0}), "optimizer"),
        (lambda: RobustTrainer(net(), loss(), epochs=1, device="tpu").fit(loader(digits(0).train, 100)), "device"),
        (lambda: RobustTrainer(net(), loss(), epochs=1).fit([(IMAGES, LABELS)]), "DataLoader"),
        (lambda: robust_report(net(), (IMAGES, LABELS), 0.1, seeds=0), "seeds"),
        (lambda: robust_report(net(), (IMAGES, LABELS), -0.1), "eps"),
        (lambda: robust_report(net(), (IMAGES * 255, LABELS), 0.1), r"\[0, 1\]"),
        (lambda: robust_report(net(), (IMAGES, LABELS), 0.1, attacks="nosuch"), "scale"),
        (lambda: robust_report(lambda images: (net()(images),), (IMAGES, LABELS), 0.1), "tensor"),
        (lambda: robust_report(lambda images: net()(images) * float("nan"), (IMAGES, LABELS), 0.1), "logits"),
        (lambda: digits(0, train=5), "train"),
        (lambda: loader(digits(0).train, 0), "batch_size"),
    )

    def test_quickstart_runs(self, tmp_path, monkeypatch):
        """Offline, from an empty cache, with a table of both."""
        if not QUICKSTART.exists():
            pytest.skip("the examples are in the checkout only")
        monkeypatch.setenv("AISEC_CACHE", str(tmp_path))
        command = [sys.executable, "-W", "error::DeprecationWarning", "-c", OFFLINE]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        lines = [line.split("|") for line in done.stdout.splitlines() if line.startswith("|")]
        rows = {line[1].strip(): line for line in lines}
        assert {"UAD", "TRADES"} <= set(rows)
        assert float(rows["TRADES"][3]) > 0.5  # clean accuracy

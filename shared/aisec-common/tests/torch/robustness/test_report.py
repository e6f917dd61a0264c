from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from aisec_common.torch.robustness import Rung, apgd, noise, pgd, robustness_report, square, standard_rungs, transfer
from torch import Tensor, nn

from tests.torch.robustness.conftest import EPS, Noisy, Rounded, Scaled, Shattered

HERE = Path(__file__)
FAST = (pgd(5), noise())


def test_an_adversarially_trained_net_passes_and_says_what_pgd_says(robust, test_set):
    report = robustness_report(robust, *test_set, eps=EPS, rungs=standard_rungs("quick"))
    assert report.flags == ()
    report.raise_if_masked()
    with torch.no_grad():
        clean = (robust(test_set[0]).argmax(1) == test_set[1]).numpy()
    assert np.array_equal(report.right("clean"), clean)
    names = [rung.name for rung in report.rungs]
    assert report.worst_case() <= min(report.accuracy(name) for name in names) <= clean.mean()
    assert report.worst_case() > 0.5
    assert np.array_equal(report.right("worst case"), np.all([report.right(n) for n in ("clean", *names)], axis=0))
    assert not report.right("PGD-20")[~clean].any()
    table = report.table().set_index("rung")
    assert table.loc["PGD-20", "forward"] <= 20
    assert table.loc["PGD-20", "distance"] <= EPS + 1e-6
    assert table.loc["noise", "forward"] == 0
    broken = 1 - report.accuracy("PGD-20")
    assert table.loc["PGD-20", "backward"] == table.loc["PGD-20", "forward"] <= 20 * (1 - broken / 2)


@pytest.mark.parametrize("mask", [lambda net: Scaled(net, 1e4), Rounded], ids=["scaled", "rounded"])
def test_masked_nets_are_flagged(mask, plain, test_set):
    report = robustness_report(mask(plain), *test_set, eps=EPS, rungs=FAST, probes=60)
    assert "F6" in {flag.code for flag in report.flags}
    assert report.verdict == "undecided (masking suspected)"
    with pytest.raises(ValueError, match=r"model: masking suspected.*F6") as raised:
        report.raise_if_masked()
    assert "\n" not in str(raised.value)


def test_random_gradients_are_flagged_and_noise_that_hides_nothing_is_not(plain, robust, test_set):
    images, labels = test_set[0][:100], test_set[1][:100]
    rungs = (pgd(10, draws=4), transfer(plain, steps=10))
    hidden = robustness_report(Shattered(plain), images, labels, eps=EPS, rungs=rungs, passes=3, probes=25)
    assert {"F1", "F5"} <= {flag.code for flag in hidden.flags}
    open_one = robustness_report(Noisy(plain, 0.05), images, labels, eps=EPS, rungs=rungs, passes=3, probes=25)
    assert open_one.flags == ()


def test_a_random_model_must_be_right_in_every_pass(plain, test_set):
    images, labels = test_set[0][:60], test_set[1][:60]
    once = robustness_report(Noisy(plain, 0.3), images, labels, eps=EPS, rungs=FAST, flags=False)
    often = robustness_report(Noisy(plain, 0.3), images, labels, eps=EPS, rungs=FAST, flags=False, passes=10)
    assert often.accuracy("clean") < once.accuracy("clean")
    samples = often.samples
    assert (samples["right"] <= (samples["mean"] == 1)).all()
    assert set((samples["mean"] * 10).round(6) % 1) == {0.0}


def test_several_radii_and_zero(plain, test_set):
    report = robustness_report(plain, *test_set, eps=(0.0, 0.05, EPS), rungs=FAST, flags=False)
    for rung in (*(r.name for r in FAST), "worst case"):
        assert report.accuracy(rung, 0.0) == report.accuracy("clean")
    assert report.accuracy("PGD-5", EPS) < report.accuracy("PGD-5", 0.05) < report.accuracy("clean")


def test_modes_statistics_and_generators_stay(plain, test_set):
    plain.train()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    state = torch.get_rng_state()
    robustness_report(plain, test_set[0][:20], test_set[1][:20], eps=EPS, rungs=(*FAST, square(5)))
    assert plain.training
    plain.eval()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in plain.state_dict().items())
    assert all(parameter.grad is None for parameter in plain.parameters())


def test_takes_a_function_and_tells_progress(plain, test_set):
    told: list[tuple[str, int, int]] = []
    images, labels = test_set[0][:30], test_set[1][:30]
    report = robustness_report(
        lambda x: plain(x),
        images,
        labels,
        eps=EPS,
        rungs=FAST,
        flags=False,
        batch_size=20,
        progress=lambda *what: told.append(what),
    )
    module = robustness_report(plain, images, labels, eps=EPS, rungs=FAST, flags=False, batch_size=20)
    assert report.samples.equals(module.samples)
    assert told[:2] == [("clean", 20, 30), ("clean", 30, 30)]
    assert told[-1] == ("noise at 0.1", 30, 30)


@pytest.mark.parametrize("noisy", [False, True])
def test_resumed_equals_unbroken(noisy, plain, test_set, tmp_path):
    model = Noisy(plain, 0.1) if noisy else plain
    images, labels = test_set[0][:50], test_set[1][:50]
    attacks = 0

    def counting(rung: Rung) -> Rung:
        def attack(*arguments: object) -> Tensor:
            nonlocal attacks
            attacks += 1
            return rung.attack(*arguments)

        return Rung(name=rung.name, kind=rung.kind, attack=attack)

    rungs = [counting(rung) for rung in (pgd(3), apgd("ce", 3), noise())]
    options = {"eps": EPS, "rungs": rungs, "batch_size": 20, "passes": 2, "flags": not noisy, "probes": 30}
    whole = robustness_report(model, images, labels, folder=tmp_path, **options)
    assert attacks == 9
    path = tmp_path / "samples.jsonl"
    lines = path.read_bytes()
    for cut in (len(lines) // 3, len(lines) // 2, len(lines)):
        path.write_bytes(lines[:cut])
        again = robustness_report(model, images, labels, folder=tmp_path, **options)
        assert again.samples.equals(whole.samples)
        assert again.cost.equals(whole.cost)
        assert again.flags == whole.flags
        assert path.read_bytes() == lines
    assert attacks < 9 * 3


def test_a_folder_of_another_model_is_refused(plain, robust, test_set, tmp_path):
    images, labels = test_set[0][:10], test_set[1][:10]
    robustness_report(plain, images, labels, eps=EPS, rungs=FAST, flags=False, folder=tmp_path)
    with pytest.raises(ValueError, match="other model; choose another folder"):
        robustness_report(robust, images, labels, eps=EPS, rungs=FAST, flags=False, folder=tmp_path)
    with pytest.raises(ValueError, match="other seed, rungs, images, labels, ids; choose"):
        robustness_report(plain, images[1:], labels[1:], eps=EPS, rungs=[pgd(6)], flags=False, folder=tmp_path, seed=1)


SCRIPT = """
import sys
from pathlib import Path
import torch
from torch import nn
from aisec_common.torch.robustness import noise, pgd, robustness_report
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
images = torch.rand(400, 1, 8, 8)
labels = net(images).argmax(1)
robustness_report(net, images, labels, eps=0.05, rungs=(pgd(40), noise()), folder=Path(sys.argv[1]), flags=False,
                  batch_size=4)
"""


@pytest.mark.slow
def test_kill_and_resume_ends_in_the_same_file(tmp_path):
    def run(folder: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / folder)], env=environment)

    assert run("whole").wait(120) == 0
    path = tmp_path / "killed" / "samples.jsonl"
    process = run("killed")
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > 20_000) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert run("killed").wait(120) == 0
    assert path.read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()


def fixed(change: Tensor | float) -> Rung:
    return Rung(name="mine", kind="white_box", attack=lambda model, images, labels, eps, generator: images + change)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"images": torch.full((5, 1, 8, 8), 2.0)}, ValueError, r"images must lie in \[0, 1\]"),
        ({"labels": torch.zeros(4, dtype=torch.long)}, ValueError, "labels must be a tensor of 5 integers"),
        ({"labels": torch.full((5,), 10)}, ValueError, r"labels must lie in 0\.\.9"),
        ({"labels": torch.full((5,), -1)}, ValueError, "labels must be classes"),
        ({"eps": 8}, ValueError, r"eps must be distinct radii in \[0, 1\]"),
        ({"eps": ()}, ValueError, "eps must be distinct radii"),
        ({"eps": (0.1, 0.1)}, ValueError, "eps must be distinct radii"),
        ({"eps": 0.0, "flags": True}, ValueError, "flags need a positive eps"),
        ({"rungs": ()}, ValueError, "rungs must be one or more"),
        ({"rungs": (pgd(5), pgd(5))}, ValueError, "distinct names"),
        ({"passes": 0}, ValueError, "passes, batch_size and probes must be >= 1"),
        ({"ids": ["a"] * 5}, ValueError, "ids must be 5 distinct names"),
        ({"rungs": (fixed(0.2),)}, ValueError, "mine left the ball"),
        ({"rungs": (fixed(float("nan")),)}, ValueError, "mine left the ball"),
        ({"rungs": (fixed(-0.05),)}, ValueError, r"mine left \[0, 1\]"),
        ({"rungs": (fixed(torch.zeros(2, 5, 1, 8, 8)),)}, ValueError, "mine must return images"),
        ({"model": lambda x: (x, x)}, TypeError, "model must return logits"),
    ],
)
def test_errors_are_one_line_and_name_the_argument(change, error, text):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    images = torch.zeros(5, 1, 8, 8)
    labels = net(images).argmax(1)
    arguments = {"model": net, "images": images, "labels": labels, "eps": EPS, "rungs": FAST, "flags": False} | change
    with pytest.raises(error, match=text) as raised:
        robustness_report(arguments.pop("model"), arguments.pop("images"), arguments.pop("labels"), **arguments)
    assert "\n" not in str(raised.value)

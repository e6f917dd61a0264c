import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from networks import batch, staged
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

from uadat.baselines import StandardLoss, TRADESLoss
from uadat.hf_trainer import RobustTrainer
from uadat.loss import UADLoss


def loaders(generator=None):
    train, held_out = TensorDataset(*batch(24)), TensorDataset(*batch(10, seed=1))
    return DataLoader(train, batch_size=8, shuffle=True, generator=generator), DataLoader(held_out, batch_size=4)


def trainer(loss=None, epochs=3, **options):
    found = UADLoss(0.1, "stage1", steps=2) if loss is None else loss
    return RobustTrainer(staged(norm="batch"), found, epochs=epochs, device="cpu", **options)


def curve(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def test_one_seed_one_curve():
    torch.manual_seed(5)
    first = trainer()
    rows = curve(first.fit(*loaders()))
    torch.manual_seed(6)
    before = torch.get_rng_state()
    again = trainer()
    assert curve(again.fit(*loaders())) == rows
    assert torch.equal(torch.get_rng_state(), before)
    assert curve(trainer(seed=1).fit(*loaders())) != rows
    for name, value in first.last_model.state_dict().items():
        assert torch.equal(again.last_model.state_dict()[name], value)
    assert {"total", "ce", "align", "stat", "iga", "val_clean", "val_pgd10", "lr", "seconds"} <= set(rows[0]) | {
        "seconds"
    }


def test_the_loaders_own_generator_is_set_too():
    rows = [curve(trainer().fit(*loaders(torch.Generator().manual_seed(seed)))) for seed in (1, 2)]
    assert rows[0] == rows[1]


def test_passes_are_counted():
    row = trainer(TRADESLoss(0.1, steps=4), epochs=1).fit(*loaders())[0]
    assert (row["forward"], row["backward"]) == (24 * (1 + 4 + 2), 24 * (4 + 2))


def test_best_by_robust_accuracy():
    found = trainer(TRADESLoss(0.1, steps=2), epochs=4)
    with pytest.raises(ValueError, match=r"after fit\(\)"):
        found.best_model
    kept = []

    def note(what, done, total):
        assert (what, total) == ("epochs", 4)
        kept.append({name: value.clone() for name, value in found.model.state_dict().items()})

    found.progress = note
    found.fit(*loaders())
    scores = [row["val_pgd10"] for row in found.history]
    best = max(epoch for epoch in range(4) if scores[epoch] == max(scores))
    for name, value in kept[best + 1].items():  # noted before each epoch, and once at the end
        assert torch.equal(found.best_model.state_dict()[name], value)
    assert not found.best_model.training


def test_without_validation_the_last_is_the_best():
    found = trainer(StandardLoss(), epochs=2)
    found.fit(loaders()[0])
    for name, value in found.last_model.state_dict().items():
        assert torch.equal(found.best_model.state_dict()[name], value)
    assert "val_clean" in trainer(StandardLoss(), epochs=1).fit(*loaders())[0]


def test_schedules():
    rows = trainer(StandardLoss(), epochs=20).fit(loaders()[0])
    assert [round(row["lr"], 6) for row in rows] == [0.1] * 15 + [0.01] * 3 + [0.001] * 2
    rows = trainer(StandardLoss(), epochs=20, schedule="onecycle", optimizer={"lr": 0.2}).fit(loaders()[0])
    rates = [row["lr"] for row in rows]
    assert 0.19 < max(rates) <= 0.2
    assert rates[0] < 0.01 > rates[-1]


def test_awp_wraps_the_loss():
    plain, perturbed = (trainer(TRADESLoss(0.1, steps=2), epochs=1, awp=awp) for awp in (None, 0.05))
    assert plain.fit(*loaders())[0]["total"] < perturbed.fit(*loaders())[0]["total"]


class Stop(Exception):
    pass


def test_a_stopped_training_goes_on_as_if_it_had_not_been(tmp_path):
    whole = trainer(epochs=4)
    rows = curve(whole.fit(*loaders()))

    def stop(what, done, total):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        trainer(epochs=4, out=tmp_path, progress=stop).fit(*loaders())
    resumed = trainer(epochs=4, out=tmp_path)
    assert curve(resumed.fit(*loaders())) == rows
    for name, value in whole.best_model.state_dict().items():
        assert torch.equal(resumed.best_model.state_dict()[name], value)
        assert torch.equal(load_file(tmp_path / "best.safetensors")[name], value)
    assert curve(json.loads((tmp_path / "history.json").read_text())["history"]) == rows
    done = trainer(epochs=4, out=tmp_path)
    assert curve(done.fit(*loaders())) == rows
    with pytest.raises(ValueError, match="another seed; take a new folder"):
        trainer(epochs=4, out=tmp_path, seed=3).fit(*loaders())


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from test_hf_trainer import loaders, trainer
trainer(epochs=10, out=Path(sys.argv[1])).fit(*loaders())
"""


@pytest.mark.slow
def test_killed_and_resumed(tmp_path):
    whole = curve(trainer(epochs=10).fit(*loaders()))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment)
    until = time.monotonic() + 120
    while not (tmp_path / "state.pt").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "state.pt").exists()
    assert curve(trainer(epochs=10, out=tmp_path).fit(*loaders())) == whole


RANKS = """
import torch
torch.set_num_threads(1)
from torch import distributed
from aisec_common.testing import end_process
from test_hf_trainer import curve, loaders, trainer
from uadat.loss import UADLoss
found = trainer(UADLoss(0.1, "stage1", steps=2, warmup=0.0), epochs=2, awp=0.01)
rows = found.fit(*loaders())
ranks = [None, None]
distributed.all_gather_object(ranks, (found.last_model.head.weight.tolist(), [r["val_pgd10"] for r in rows]))
assert ranks[0] == ranks[1], ranks
assert rows[0]["forward"] > 0
distributed.destroy_process_group()
end_process()
"""


@pytest.mark.slow
def test_two_ranks_train_one_model(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([*command, str(tmp_path / "ranks.py")], env=environment, capture_output=True, timeout=300)
    assert run.returncode == 0, run.stderr.decode()[-3000:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"schedule": "cosine"}, "schedule must be"),
        ({"optimizer": {"betas": 1}}, "optimizer has no argument betas"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        trainer(**options)


def test_loaders_and_losses_are_checked():
    with pytest.raises(TypeError, match="train_loader must be a torch DataLoader"):
        trainer().fit([batch()])
    with pytest.raises(ValueError, match="finite"):
        trainer(TRADESLoss(0.1, steps=2), epochs=9, optimizer={"lr": 1e30}).fit(loaders()[0])

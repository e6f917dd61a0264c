import pytest
import torch
import torch.multiprocessing as processes
from aisec_common.testing import end_process
from networks import batch, staged
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from uadat.awp import AWP
from uadat.distributed import group_of, sum_over, unwrapped
from uadat.loss import UADLoss
from uadat.robust_loss import Views


def test_one_process_is_left_alone():
    net = nn.Linear(2, 2)
    assert unwrapped(net) is net
    assert group_of(net) is None
    values = torch.rand(3)
    assert sum_over(values, None) is values


def settings(cov):
    return {"eps": 0.1, "layer": "stage1", "samples": 2, "cov": cov, "stat": 5.0, "iga": 0.5, "warmup": 0.0}


def views(loss, model, rows):
    """The whole batch's views, or some rows of them, and all that is random given."""
    images, labels = batch(20)
    generator = torch.Generator().manual_seed(1)
    found = loss.prepare(model, images, labels, generator=generator)
    tensors = {name: getattr(found, name)[rows] for name in ("images", "labels", "reference", "adversarial")}
    return Views(**tensors, noise=found.noise[:, :, rows])


def step(model, loss, found):
    result = loss.on(model, found)
    result.total.backward()
    return result.parts


CASES = {"diag": ("diag", False), "lowrank": ("lowrank", False), "weights too": ("diag", True)}


def worker(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        for case, (cov, weights_too) in CASES.items():
            maker, loss = staged(), UADLoss(**settings(cov))
            rows = slice(10 * rank, 10 * rank + 10)
            found = views(UADLoss(**settings(cov)), maker, rows)
            model = DistributedDataParallel(staged(), broadcast_buffers=False)
            step(model, AWP(loss, 0.1) if weights_too else loss, found)
            images, labels = batch(20)
            right = torch.arange(20) % 3 > 0
            own = right[rows]
            loss.gaussians.update(images[rows].mean((2, 3))[own], labels[rows][own], 4, group_of(model))
            gradient = torch.cat([weight.grad.flatten() for weight in model.parameters()])
            torch.save({"gradient": gradient, "state": loss.state_dict()}, f"{folder}/{case} {rank}.pt")
    finally:
        distributed.destroy_process_group()
    end_process()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes saved of every case; starting them is what takes long."""
    folder = tmp_path_factory.mktemp("ranks")
    processes.spawn(worker, (str(folder),), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one_with_the_doubled_batch(ranks, case):
    cov, weights_too = CASES[case]
    model, loss = staged(), UADLoss(**settings(cov))
    found = views(UADLoss(**settings(cov)), model, slice(None))
    step(model, AWP(loss, 0.1) if weights_too else loss, found)
    images, labels = batch(20)
    right = torch.arange(20) % 3 > 0
    loss.gaussians.update(images.mean((2, 3))[right], labels[right], 4)
    expected = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    for rank in range(2):
        saved = torch.load(ranks / f"{case} {rank}.pt", weights_only=True)
        torch.testing.assert_close(saved["gradient"], expected, rtol=1e-4, atol=1e-6)
        for name, value in loss.state_dict().items():
            torch.testing.assert_close(saved["state"][name], value, rtol=1e-4, atol=1e-7)

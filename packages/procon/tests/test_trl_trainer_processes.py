"""The same training in one process and in two; started as a script, this file is one of the two."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from aisec_common.testing import end_process
from safetensors.torch import load_file
from tiny_training import losses, make, trained_weights
from torch import distributed
from torch.testing import assert_close


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["adapter_off", "cache"])
def test_two_processes_equal_one(tmp_path, reference):
    one = make(tmp_path / "one", **two_step(reference, rows_each=8))
    one.train()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path / "two"), reference],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)[-4000:]
    two = load_file(tmp_path / "two" / "weights.safetensors")
    for name, weight in trained_weights(one).items():
        assert_close(two[name], weight, rtol=1e-4, atol=1e-6)
    logged = json.loads((tmp_path / "two" / "log.json").read_text())
    assert logged == pytest.approx([entry["procon"] for entry in losses(one)], rel=1e-4)


def two_step(reference, rows_each):
    args = {"per_device_train_batch_size": rows_each, "num_train_epochs": 2, "max_grad_norm": 0.0}
    return {"procon": {"alpha": 5.0, "reference": reference}, "moved": True, "args": args | {"optim": "sgd"}}


def _one_of_two(folder, reference):
    from safetensors.torch import save_file

    settings = two_step(reference, rows_each=4)
    settings["args"]["ddp_backend"] = "gloo"
    trainer = make(folder, **settings)
    trainer.train()
    if trainer.accelerator.is_main_process:
        save_file(trained_weights(trainer), folder / "weights.safetensors")
        (folder / "log.json").write_text(json.dumps([entry["procon"] for entry in losses(trainer)]))


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(exist_ok=True)
    _one_of_two(Path(sys.argv[1]), sys.argv[2])
    distributed.destroy_process_group()
    end_process()

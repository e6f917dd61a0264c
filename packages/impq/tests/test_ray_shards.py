import json
import shutil
import sys

import numpy as np
import pytest

from impq import Game
from impq.cli import main
from impq.config import EstimateConfig

WORDS = ["--tokens", "64", "--window", "32", "--group-size", "16", "--permutations", "6", "--preset", "paper"]
ON_RAY = ["--jobs", "2", "--parallel", "ray"]


def estimate(checkpoint, folder, *words):
    return main(["estimate", str(checkpoint), "--out", str(folder), *WORDS, *words])


@pytest.fixture(scope="module")
def cluster():
    """Two CPUs of this host."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # 15 by default, which starves on a busy host
        ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="warning")
        yield ray
        ray.shutdown()


@pytest.mark.slow
def test_the_game_on_ray_is_bit_for_bit_that_of_one_process(checkpoint, cluster, tmp_path, capsys):
    assert estimate(checkpoint, tmp_path / "one") == 0
    assert estimate(checkpoint, tmp_path / "ray", *ON_RAY) == 0, capsys.readouterr().err
    ours, single = Game.load(tmp_path / "ray"), Game.load(tmp_path / "one")
    assert np.array_equal(ours.shapley, single.shapley)
    assert np.array_equal(ours.losses, single.losses)
    assert ours.sha256 == single.sha256
    assert cluster.is_initialized()  # the cluster was here before the command
    for k in (1, 2):
        lines = (tmp_path / "ray" / f"shard-{k}" / "game.jsonl").read_text().splitlines()
        assert [json.loads(line)["kind"] for line in lines] == ["header", *["permutation"] * 3]


@pytest.mark.slow
def test_a_shard_goes_on_from_the_journal_of_this_host(checkpoint, cluster, tmp_path, capsys):
    assert estimate(checkpoint, tmp_path, *ON_RAY) == 0
    whole = Game.load(tmp_path).sha256
    journal = tmp_path / "shard-1" / "game.jsonl"
    header, first, *_ = journal.read_text().splitlines(keepends=True)
    marked = json.loads(first) | {"seconds": 1234.5}  # no run takes that long
    journal.write_text(header + json.dumps(marked) + "\n" + '{"kind": "perm')  # killed while writing
    (tmp_path / "game.jsonl").unlink()
    assert estimate(checkpoint, tmp_path, *ON_RAY) == 0
    assert Game.load(tmp_path).sha256 == whole
    kept = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [line.get("seconds") == 1234.5 for line in kept] == [False, True, False, False]


@pytest.mark.slow
def test_what_a_task_refuses_is_one_line_that_names_the_folder_here(checkpoint, cluster, tmp_path, capsys):
    assert estimate(checkpoint, tmp_path, *ON_RAY) == 0
    shutil.rmtree(tmp_path / "shard-2")
    capsys.readouterr()
    assert estimate(checkpoint, tmp_path, *ON_RAY, "--group-size", "8") == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith(f"impq: --out {tmp_path / 'shard-1'}: journal game.jsonl was made with group_size 16")


@pytest.mark.slow
def test_walks_are_kept_when_a_host_is_lost(cluster, tmp_path):
    from impq.ray_shards import measured_on_ray

    parts = [EstimateConfig(model="any", out=tmp_path / f"{k}", shard=f"{k + 1}/2") for k in range(2)]
    for part in parts:
        part.out.mkdir()

    def measure(part, progress):
        import os
        import time

        (part.out / "game.jsonl").write_text(f"first walk of {part.shard}\n")
        progress(1, 2)
        if part.share[0] == 1:
            time.sleep(3)
            os._exit(1)
        time.sleep(60)
        return "never"

    with pytest.raises(OSError, match=r"^ray: a shard was lost \(.*finished walks are kept$"):
        measured_on_ray(measure, parts, lambda done, total: None)
    for part in parts:
        assert (part.out / "game.jsonl").read_text() == f"first walk of {part.shard}\n"


@pytest.mark.slow
def test_a_gpu_that_no_host_has_is_refused(checkpoint, cluster, tmp_path, capsys):
    assert estimate(checkpoint, tmp_path, *ON_RAY, "--device", "cuda") == 2
    assert capsys.readouterr().err.startswith("impq: device: cuda needs a GPU")


def test_a_missing_ray_is_one_line_that_names_the_extra(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "impq.ray_shards", raising=False)
    assert estimate(checkpoint, tmp_path, *ON_RAY) == 2
    assert capsys.readouterr().err == "impq: needs ray: pip install 'aisec-impq[ray]'\n"


def test_one_job_needs_no_cluster(checkpoint, tmp_path, capsys):
    assert estimate(checkpoint, tmp_path, "--parallel", "ray") == 2
    assert "jobs must be at least 2" in capsys.readouterr().err

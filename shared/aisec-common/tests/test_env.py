import platform
import re
import subprocess
import sys

from aisec_common import env


def test_versions_name_the_distribution_and_what_it_requires():
    versions = env.versions("aisec-common")
    assert {"python", "aisec-common", "numpy", "scipy"} <= set(versions)
    assert versions["python"] == platform.python_version()


def test_code_hash_follows_the_code_only(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    first = env.code_hash(tmp_path)
    (tmp_path / "card.toml").write_text("")
    assert env.code_hash(tmp_path) == first
    (tmp_path / "prompt.txt").write_text("")
    second = env.code_hash(tmp_path)
    (tmp_path / "a.py").write_text("x = 2")
    assert len({first, second, env.code_hash(tmp_path)}) == 3


def test_commit_is_absent_outside_a_checkout(tmp_path):
    assert env.git_commit(tmp_path) is None


def test_command_and_device_name_no_path_and_no_host(monkeypatch, tmp_path):
    typed = [f"{tmp_path}/bin/aisec", "reproduce", f"--out={tmp_path}/x", "--data", f"{tmp_path}/e", "a/b"]
    monkeypatch.setattr("sys.argv", typed)
    assert env.command() == "aisec reproduce --out=x --data e a/b"
    assert platform.node() not in env.device()
    assert re.search(r"\d+ cores", env.device())


ALLOCATES = """
from aisec_common import env
env.reset_peak_memory()
before = env.peak_memory_mib()
block = bytearray(64 * 2**20)
block[::4096] = b"x" * len(block[::4096])
print(env.peak_memory_mib() - before)
"""


def test_peak_memory_sees_what_was_allocated():
    # in a process of its own: not every system lets the peak of this one, which other tests have raised, be reset
    told = subprocess.run([sys.executable, "-c", ALLOCATES], capture_output=True, text=True, check=True)
    assert float(told.stdout) >= 60

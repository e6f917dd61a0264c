import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "examples" / "quickstart.py"


def test_runs_offline_without_torch():
    code = f"""
import socket, sys, runpy
def refused(*_): raise OSError("the quickstart must not use the network")
socket.socket.connect = refused
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "RI 0.24" in run.stdout
    assert "refuse-6" in run.stdout

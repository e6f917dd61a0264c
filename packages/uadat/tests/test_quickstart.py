import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "quickstart.py"


@pytest.mark.slow  # the contract runs the script too
def test_runs_offline_from_an_empty_cache(tmp_path):
    code = f"""
import os, runpy, socket
os.environ["AISEC_CACHE"] = {str(tmp_path)!r}
def refused(*_): raise OSError("the quickstart must not use the network")
socket.socket.connect = refused
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", code], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = {line.split("|")[1].strip(): line.split("|") for line in done.stdout.splitlines() if line.startswith("|")}
    assert {"UAD", "TRADES"} <= set(rows)
    assert float(rows["TRADES"][3]) > 0.5  # clean accuracy

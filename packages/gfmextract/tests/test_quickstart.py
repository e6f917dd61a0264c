import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "quickstart.py"


@pytest.mark.slow  # the contract runs the script too, trained or not
def test_runs_offline_from_an_empty_cache(tmp_path):
    code = f"""
import os, runpy, socket
os.environ["AISEC_CACHE"] = {str(tmp_path)!r}
def refused(*_): raise OSError("the quickstart must not use the network")
socket.socket.connect = refused
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.strip()]
    fidelity = {
        (name, queries): float(found[1])
        for line in rows
        for name in ("embedding regression", "permuted answers")
        for queries in ("16", "160")
        if (found := re.search(rf"{name} +{queries} +\S+ +\S+ +(\S+)", line))
    }
    assert fidelity["embedding regression", "160"] > fidelity["embedding regression", "16"]
    assert fidelity["embedding regression", "160"] > fidelity["permuted answers", "160"] + 0.3
    pvalue = re.search(r"copy p = (\S+), victim p = (\S+)", rows[-1])
    assert float(pvalue[1]) < float(pvalue[2])

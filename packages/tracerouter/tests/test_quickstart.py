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
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
    asr, utility = (
        {setting: float(rows[setting][column]) for setting in ("none", "path", "random")} for column in (1, 2)
    )
    assert asr["none"] > 0.9
    assert utility["none"] > 0.8
    assert asr["path"] < asr["random"]

import re
import runpy
import socket
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "quickstart.py"


@pytest.mark.slow  # the contract runs the script in its own process, mostly with a victim from the cache
def test_runs_offline_from_an_empty_cache(tmp_path, monkeypatch, capsys):
    def refused(*_):
        raise OSError("the quickstart must not use the network")

    monkeypatch.setenv("AISEC_CACHE", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", refused)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert list((tmp_path / "trained").glob("*.safetensors")), "the victim was trained"
    rows = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
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

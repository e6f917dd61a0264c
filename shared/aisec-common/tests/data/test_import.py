from __future__ import annotations

import subprocess
import sys

PROBE = """
import socket, sys
def refuse(*arguments): raise SystemExit("touched the network")
socket.socket.connect = socket.getaddrinfo = refuse
import aisec_common.data, aisec_common.data.cli
aisec_common.data.known()
print(sorted({"numpy", "torch", "huggingface_hub", "transformers"} & set(sys.modules)))
"""


def test_importing_loads_nothing_heavy_and_touches_no_network() -> None:
    out = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    assert (out.returncode, out.stdout.strip(), out.stderr) == (0, "[]", "")

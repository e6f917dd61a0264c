"""What a record says about where it was made: versions, device, command, commit. No path, no host name."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path


def versions(distribution: str) -> dict[str, str]:
    """Versions of Python, of a distribution and of everything it may directly require that is installed."""
    names = {distribution, "aisec-common"}
    for requirement in metadata.requires(distribution) or []:
        if name := re.match(r"[A-Za-z0-9._-]+", requirement):
            names.add(re.sub(r"[-_.]+", "-", name[0]).lower())
    found = {"python": platform.python_version()}
    for each in sorted(names):
        try:
            found[each] = metadata.version(each)
        except metadata.PackageNotFoundError:
            continue  # an extra the user did not install
    return found


def device() -> str:
    """The processor, and the accelerator if torch is loaded and has one; asks no driver otherwise."""
    name = f"{platform.machine()}, {os.cpu_count()} cores"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        name += f", {torch.cuda.get_device_name()}"
    return name


def command() -> str:
    """The command line as typed, but for the folders of absolute paths: records get published."""
    return re.sub(r"(?<![^\s=])/\S*/", "", " ".join(sys.argv))


def git_commit(folder: Path) -> str | None:
    """The commit of the checkout that holds `folder`, marked `+` if it has uncommitted changes; None outside one."""
    try:
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=folder, capture_output=True, timeout=10
        )
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode or status.returncode:
        return None
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")


def code_hash(*packages: Path) -> str:
    """sha256 over the files of package folders, cards left out: results of other code must not be mixed on resume."""
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted(package.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.name != "card.toml":
                digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def reset_peak_memory() -> None:
    """Starts the peak of `peak_memory_mib` anew, where the system can: only Linux does."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mib() -> float:
    """Peak resident memory of this process in MiB, since the last reset or else since its start."""
    try:
        status = Path("/proc/self/status").read_text()
        return round(int(status.split("VmHWM:")[1].split()[0]) / 1024, 1)
    except (OSError, IndexError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(peak / (2**20 if sys.platform == "darwin" else 1024), 1)

"""From a `--device` argument to a torch device that exists here."""

from __future__ import annotations

import torch


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The torch device that `device` names, checked to be present; `"auto"` takes cuda, else mps, else cpu.

    Args:
        device: `"auto"`, `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"` or a `torch.device`.

    Raises:
        ValueError: when it is malformed or not present on this machine.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda', 'cuda:<n>' or 'mps', got {device!r}") from None
    if wanted.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (wanted.index or 0) >= count:
            raise ValueError(f"device {str(wanted)!r} is not here: torch sees {count} cuda devices; use 'auto'")
    elif wanted.type == "mps" and not _has_mps():
        raise ValueError("device 'mps' is not here: torch sees no Apple GPU; use 'auto'")
    elif wanted.type not in ("cpu", "mps"):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda', 'cuda:<n>' or 'mps', got {str(wanted)!r}")
    return wanted


def _has_mps() -> bool:
    return bool(torch.backends.mps.is_available())

"""Reference projections of every training sample, kept on disk and read through a memory map."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from aisec_common.files import write_atomic
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from procon.config import CacheDtype

SHARD_BYTES = 64 * 2**20  # what is held in memory before a file is written


class ProjectionCache:
    """z_0 of each sample under its key, in files of one folder that belong to one model, direction set and type.

    A file is written whole or not at all, so an interrupted pre-pass leaves nothing wrong behind and is continued.

    Args:
        folder: of this model's and these directions' projections alone.
        dtype: of the kept numbers.
        writer: number of the process, where several write to the folder at the same time.
    """

    def __init__(self, folder: Path, dtype: CacheDtype = "float32", *, writer: int = 0) -> None:
        self.folder = folder
        self.dtype = {"float32": torch.float32, "float16": torch.float16}[dtype]
        self.writer = writer
        self._where: dict[bytes, Tensor] = {}  # views into the memory maps
        self._pending: dict[bytes, Tensor] = {}
        self._pending_bytes = 0
        self.reload()

    def __contains__(self, key: bytes) -> bool:
        return key in self._where or key in self._pending

    def __len__(self) -> int:
        return len(self._where) + len(self._pending)

    def reload(self) -> None:
        """Reads which samples the files hold, those of other processes included; a damaged file is dropped."""
        self._where.clear()
        for file in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(file, framework="pt") as shard:
                    keys, ends, z = (shard.get_tensor(name) for name in ("keys", "ends", "z"))
            except SafetensorError:
                file.unlink(missing_ok=True)
                continue
            start = 0
            for key, end in zip(keys.numpy(), ends.tolist(), strict=True):
                self._where[key.tobytes()] = z[start:end]
                start = end

    def add(self, key: bytes, z: Tensor) -> None:
        """Keeps z [m, L] of one sample; `flush` writes what is left.

        Raises:
            ValueError: if a number is NaN or infinite, in this type.
        """
        if key in self:
            return
        kept = z.detach().to("cpu", self.dtype).clone()
        if not torch.isfinite(kept).all():
            hint = "; use cache_dtype='float32'" if torch.isfinite(z).all() else "; check the model and its dtype"
            raise ValueError(f"the reference model gives projections that are NaN or infinite{hint}")
        self._pending[key] = kept
        self._pending_bytes += kept.nbytes
        if self._pending_bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes the samples that are in memory only."""
        if not self._pending:
            return
        z = torch.cat(list(self._pending.values()))
        ends = torch.tensor([len(rows) for rows in self._pending.values()]).cumsum(0)
        keys = torch.tensor([list(key) for key in self._pending], dtype=torch.uint8)
        number = len(list(self.folder.glob(f"{self.writer:05}-*.safetensors")))
        file = self.folder / f"{self.writer:05}-{number:05}.safetensors"
        write_atomic(file, save({"keys": keys, "ends": ends, "z": z}))
        self._pending.clear()
        self._pending_bytes = 0
        self.reload()

    def lookup(self, keys: Iterable[bytes]) -> Tensor:
        """z_0 of the samples, one after the other [tokens, L], float32.

        Raises:
            ValueError: for a sample that the pre-pass has not seen.
        """
        try:
            return torch.cat([self._where[key] for key in keys]).float()
        except KeyError:
            raise ValueError(
                f"reference='cache' has no projections of a training sample in {self.folder}: the collator changes "
                "samples from step to step; use reference='adapter_off' or 'model'"
            ) from None

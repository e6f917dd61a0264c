"""A victim's answers kept on disk, so that no subgraph is encoded twice."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from aisec_common.files import write_atomic
from aisec_common.torch.model_hash import model_hash
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gfmextract.canonical import canonical_hash
from gfmextract.victim import Victim, encode_egos

if TYPE_CHECKING:
    from gfmextract.pyg_ego import EgoGraphs


class AnswerCache:
    """The undefended answers of one victim, by canonical hash of the subgraph.

    Every call that meets new subgraphs leaves one file; several processes may share a folder. A cached answer equals a
    fresh one up to the rounding that the size of a batch leaves.

    Args:
        folder: one subfolder for each victim is made in it.
        victim: told apart by its weights and its description, so it has to be a module.

    Raises:
        ValueError: for a victim that is no module.
    """

    def __init__(self, folder: Path, victim: Victim) -> None:
        if not isinstance(victim, nn.Module):
            raise ValueError(f"cache cannot tell {type(victim).__name__} from another victim: it takes a torch module")
        told = hashlib.sha256(f"{victim!r}\n{model_hash(victim)}".encode()).hexdigest()
        self._folder = folder / told[:16]
        self._victim: Victim = victim
        self._row: dict[bytes, int] = {}
        self._answers: list[Tensor] = []
        for file in sorted(self._folder.glob("*.safetensors")):
            try:
                kept = load_file(file)
            except SafetensorError:  # torn by a full disk: its subgraphs are encoded again
                continue
            self._keep(kept["keys"], kept["answers"])

    def __len__(self) -> int:
        return len(self._answers)

    def answers(self, egos: EgoGraphs) -> Tensor:
        """[G, d] the victim's answers; only subgraphs that were never seen reach the victim, each once."""
        keys = canonical_hash(egos)
        new = {name: i for i, name in enumerate(_names(keys)) if name not in self._row}
        if new:
            rows = torch.tensor(sorted(new.values()))
            fresh = encode_egos(self._victim, egos[rows])
            self._keep(keys[rows], fresh)
            content = save({"keys": keys[rows], "answers": fresh})
            write_atomic(
                self._folder / f"{hashlib.sha256(b''.join(sorted(new))).hexdigest()[:16]}.safetensors", content
            )
        return torch.stack([self._answers[self._row[name]] for name in _names(keys)])

    def _keep(self, keys: Tensor, answers: Tensor) -> None:
        for name, answer in zip(_names(keys), answers, strict=True):
            if name not in self._row:
                self._row[name] = len(self._answers)
                self._answers.append(answer)


def _names(keys: Tensor) -> list[bytes]:
    return [row.tobytes() for row in keys.numpy()]

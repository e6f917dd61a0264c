"""A victim's answers, kept so that no subgraph is encoded twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from aisec_common.files import write_atomic
from aisec_common.torch.model_hash import model_hash
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gfmextract.canonical import canonical_hash
from gfmextract.pyg_ego import EgoBatch, EgoGraphs
from gfmextract.victim import Victim, encode_egos


class AnswerCache:
    """The undefended answers of one victim, by canonical hash of the subgraph.

    Every call that meets new subgraphs leaves one file; several processes may share a folder. A cached answer equals a
    fresh one up to the rounding that the size of a batch leaves.

    Args:
        folder: one subfolder for each victim is made in it; None keeps answers in memory alone.
        victim: told apart by its weights and its description, so with a folder it has to be a module.

    Raises:
        ValueError: for a folder and a victim that is no module.
    """

    def __init__(self, folder: Path | None, victim: Victim) -> None:
        if folder is not None:
            if not isinstance(victim, nn.Module):
                name = type(victim).__name__
                raise ValueError(f"cache cannot tell {name} from another victim: it takes a torch module")
            folder = folder / weights_hash(victim)[:16]
        self._folder = folder
        self._victim: Victim = victim
        self._row: dict[bytes, int] = {}
        self._answers: list[Tensor] = []
        for file in sorted(folder.glob("*.safetensors")) if folder is not None else ():
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
            if self._folder is not None:
                content = save({"keys": keys[rows], "answers": fresh})
                name = hashlib.sha256(b"".join(sorted(new))).hexdigest()[:16]
                write_atomic(self._folder / f"{name}.safetensors", content)
        return torch.stack([self._answers[self._row[name]] for name in _names(keys)])

    def _keep(self, keys: Tensor, answers: Tensor) -> None:
        for name, answer in zip(_names(keys), answers, strict=True):
            if name not in self._row:
                self._row[name] = len(self._answers)
                self._answers.append(answer)


class Remembered:
    """A victim that is asked once about each subgraph and each text.

    Args:
        victim: that is asked.
        folder: of its answers to subgraphs, see `AnswerCache`, for a victim that is a module; those of others, and
            vectors of texts, stay in memory.
    """

    def __init__(self, victim: Victim, folder: Path | None = None) -> None:
        self._victim = victim
        self._answers = AnswerCache(folder if isinstance(victim, nn.Module) else None, victim)
        self._texts: dict[str, Tensor] = {}

    def encode_graph(self, batch: EgoBatch) -> Tensor:
        """[G, d] on the CPU."""
        return self._answers.answers(EgoGraphs.of_batch(batch))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """[n, d] on the CPU."""
        if new := [text for text in dict.fromkeys(texts) if text not in self._texts]:
            self._texts |= zip(new, self._victim.encode_text(new).detach().cpu(), strict=True)
        return torch.stack([self._texts[text] for text in texts])

    def hash(self, egos: Iterable[EgoGraphs], texts: Sequence[str]) -> str:
        """What tells the victim from another: weights and description of a module, else its answers to these."""
        if isinstance(self._victim, nn.Module):
            return weights_hash(self._victim)
        digest = hashlib.sha256()
        for told in (*(encode_egos(self, each) for each in egos), self.encode_text(texts)):
            digest.update(told.double().numpy().tobytes())
        return digest.hexdigest()


def weights_hash(victim: nn.Module) -> str:
    """SHA-256 of the weights of a module and of what it is printed as."""
    return hashlib.sha256(f"{victim!r}\n{model_hash(victim)}".encode()).hexdigest()


def _names(keys: Tensor) -> list[bytes]:
    return [row.tobytes() for row in keys.numpy()]

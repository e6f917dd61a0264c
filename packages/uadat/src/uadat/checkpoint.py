"""What a training needs to go on where it stopped, in one file that is there whole or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from aisec_common.files import require_writable, write_atomic
from safetensors.torch import save
from torch import Tensor, nn

STATE = "state.pt"
Weights = dict[str, Tensor]


def kept_weights(model: nn.Module) -> Weights:
    """A copy of the weights and stored buffers, on the CPU."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}


class Checkpoint:
    """The folder of one training: `state.pt` to go on from; last and best weights and the history to use.

    Args:
        folder: made if absent.
        configuration: what decides the training; a state under another one is refused.

    Raises:
        ValueError: if the folder cannot be written.
    """

    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        require_writable(folder, "out")
        self.folder, self.configuration = folder, json.loads(json.dumps(configuration))

    def read(self) -> dict[str, Any] | None:
        """The state that was last written, or None.

        Raises:
            ValueError: if it cannot be read or belongs to another training.
        """
        file = self.folder / STATE
        if not file.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            held = json.loads(state["configuration"])
        except Exception as error:
            raise ValueError(f"out: {file} is no state of a training ({type(error).__name__}); remove it") from None
        changed = sorted(name for name in self.configuration if held.get(name) != self.configuration[name])
        if changed:
            raise ValueError(
                f"out: {self.folder} holds a training with another {', '.join(changed)}; take a new folder"
            )
        return state

    def write(self, state: Mapping[str, Any], last: Weights, best: Weights, history: list[dict[str, float]]) -> None:
        """Writes the state first: the other files are made from it, and made again after a resume."""
        content = io.BytesIO()
        told = {"configuration": json.dumps(self.configuration), "model": last, "best": best, "history": history}
        torch.save({**state, **told}, content)
        write_atomic(self.folder / STATE, content.getvalue())
        self.export(last, best, history)

    def export(self, last: Weights, best: Weights, history: list[dict[str, float]]) -> None:
        """Writes the files to use."""
        write_atomic(self.folder / "last.safetensors", save(last))
        write_atomic(self.folder / "best.safetensors", save(best))
        told = {"configuration": self.configuration, "history": history}
        write_atomic(self.folder / "history.json", json.dumps(told, indent=1) + "\n")

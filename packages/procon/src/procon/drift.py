"""How far fine-tuning has turned the refusal directions."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from aisec_common.files import write_atomic
from torch import Tensor

from procon.direction import RefusalDirections

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = "procon-drift/1"


def signed_cosines(before: RefusalDirections, after: RefusalDirections) -> Tensor:
    """cos(r_0^(l), r_t^(l)) of every layer; the sign is kept, for −1 is a refusal turned round and not one unchanged.

    Args:
        before: directions r_0 of one model.
        after: directions r_t of the same layers of another, or of the same one later.

    Returns:
        [L], float32, in [−1, 1], in the order of `before.layers`.

    Raises:
        ValueError: if layers, number of blocks or hidden size differ. Other weights are what this is for.

    Source: arXiv 2509.06795, section 3.
    """
    for name, one, other in (
        ("hidden size", before.width, after.width),
        ("number of blocks", before.blocks, after.blocks),
        ("layers", sorted(before.layers), sorted(after.layers)),
    ):
        if one != other:
            raise ValueError(f"before and after must have the same {name}, got {one} and {other}")
    ours, theirs = (directions.vectors.cpu().double() for directions in (before, after.at(before.layers)))
    cosines: Tensor = torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).clamp(-1.0, 1.0).float()
    return cosines


@dataclass(frozen=True, kw_only=True)
class DriftReport:
    """The signed cosine between the refusal directions of two models, layer by layer.

    Attributes:
        layers: block indices, from 0.
        cosines: of each of `layers`; 1 is no drift.
        model_before, model_after: names, for people.

    Raises:
        ValueError: if `layers` and `cosines` differ in length or a cosine is outside [−1, 1].

    >>> report = DriftReport(layers=(0, 1), cosines=(1.0, 0.5), model_before="base", model_after="tuned")
    >>> report.table()[1]
    {'layer': 1, 'cosine': 0.5}

    Source: arXiv 2509.06795, section 3 and its figures of cosines over training.
    """

    layers: tuple[int, ...]
    cosines: tuple[float, ...]
    model_before: str
    model_after: str

    def __post_init__(self) -> None:
        if not self.layers or len(self.layers) != len(self.cosines):
            raise ValueError(f"cosines must be one per layer, got {len(self.cosines)} for {len(self.layers)} layers")
        if wrong := [cosine for cosine in self.cosines if not -1 <= cosine <= 1]:
            raise ValueError(f"cosines must lie in [-1, 1], got {wrong[0]}")

    @classmethod
    def of(cls, before: RefusalDirections, after: RefusalDirections) -> DriftReport:
        """The report on two sets of directions; see `signed_cosines`."""
        cosines = tuple(float(cosine) for cosine in signed_cosines(before, after))
        return cls(layers=before.layers, cosines=cosines, model_before=before.model_name, model_after=after.model_name)

    def table(self) -> list[dict[str, float]]:
        """A row `{"layer", "cosine"}` per layer."""
        return [{"layer": layer, "cosine": cosine} for layer, cosine in zip(self.layers, self.cosines, strict=True)]

    def to_markdown(self) -> str:
        """The table in Markdown."""
        rows = [f"| {layer} | {cosine:+.3f} |" for layer, cosine in zip(self.layers, self.cosines, strict=True)]
        return "\n".join(["| layer | cos(before, after) |", "|---|---|", *rows]) + "\n"

    def plot(self, path: Path | str | None = None) -> Figure:
        """The cosine against the layer; written as PNG or whatever `path` ends in, if given."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0.0, color="0.6", linewidth=0.8)
        axes.plot(self.layers, self.cosines, marker="o", markersize=4)
        axes.set(xlabel="layer", ylabel="cos(before, after)", ylim=(min(-0.05, *self.cosines) - 0.05, 1.05))
        axes.set_title(" → ".join(name for name in (self.model_before, self.model_after) if name), fontsize="medium")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if path is not None:
            drawn = io.BytesIO()
            figure.savefig(drawn, format=Path(path).suffix[1:] or "png", dpi=110)
            write_atomic(Path(path), drawn.getvalue())
        return figure

    def save(self, path: Path | str) -> None:
        """Writes the report as JSON, atomically."""
        write_atomic(Path(path), json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> DriftReport:
        """The report in a file.

        Raises:
            ValueError: in one line naming the file, if it is missing or no report.
        """
        try:
            content = json.loads(Path(path).read_text())
            if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
                raise ValueError(f"its schema is not {SCHEMA}")
            return cls(**{**content, "layers": tuple(content["layers"]), "cosines": tuple(content["cosines"])})
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror}); give a saved drift report") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: no drift report ({str(error).splitlines()[0]})") from None

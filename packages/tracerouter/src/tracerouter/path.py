"""What was found: the onset layer, the units of the path at every layer and site, and what speaks for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd
from aisec_common.files import write_atomic
from aisec_common.torch.model_hash import model_hash
from aisec_common.torch.sparse_autoencoder import SparseAutoencoder
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from tracerouter.activity import Activity
from tracerouter.features import back_projection, delta_wfs
from tracerouter.influence import fis
from tracerouter.sites import DECODER, Adapter, Key, Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UnitKind = Literal["latent", "coordinate"]
FORMAT = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """The path of a concept through one model, as `TraceRouter.fit` found it.

    Layers are 0-based block indices. At the onset layer l* the path is the source; at later layers it is the units of
    highest influence score.

    Args:
        onset: l*.
        onset_curve: sensitivity score of every block; empty where the onset was given.
        sites: the sites that were traced.
        unit: `"latent"` (of a sparse autoencoder at every layer and site from l* on) or `"coordinate"`.
        path: unit indices at each (layer, site), best first.
        features: the latents selected by ΔWFS at each site of l*.
        saes: autoencoders; of a coordinate trace only those at l*.
        plus: statistics of the units over tokens of sensitive prompts.
        minus: the same over matched prompts.
        delta: Δ(m) of every unit of the later layers.
        contrast: whether the path was ranked by FIS_c (else by FIS as printed).
        blocks: number of blocks of the model.
        width: its hidden size, or 0 where the blocks differ in it.
        model_name: for the reader.
        model_hash: of the weights.

    Raises:
        ValueError: for an onset at the last block, path entries before l*, at other sites, or with units that are not
            there.

    >>> import torch
    >>> plus, minus, place = Activity(2), Activity(2), (1, "resid")
    >>> plus.update(torch.tensor([[3.0, 1.0]]))
    >>> minus.update(torch.tensor([[0.0, 1.0]]))
    >>> known = {"path": {place: torch.tensor([0])}, "plus": {place: plus}, "minus": {place: minus}}
    >>> known |= {"delta": {place: torch.ones(2)}, "onset": 0, "sites": ("resid",), "blocks": 2, "width": 2}
    >>> Trace(**known, model_hash="").summary()[["layer", "site", "role", "K", "mass"]].values.tolist()
    [[1, 'resid', 'path', 1, 1.0]]
    """

    onset: int
    onset_curve: tuple[float, ...] = ()
    sites: tuple[Site, ...]
    unit: UnitKind = "latent"
    path: Mapping[Key, Tensor]
    features: Mapping[Key, Tensor] = field(default_factory=dict)
    saes: Mapping[Key, SparseAutoencoder] = field(default_factory=dict)
    plus: Mapping[Key, Activity]
    minus: Mapping[Key, Activity]
    delta: Mapping[Key, Tensor]
    contrast: bool = True
    blocks: int
    width: int
    model_name: str = ""
    model_hash: str

    def __post_init__(self) -> None:
        if self.unit not in get_args(UnitKind):
            raise ValueError(f"unit must be 'latent' or 'coordinate', got {self.unit!r}")
        if not 0 <= self.onset < self.blocks - 1:
            raise ValueError(f"onset must be in 0..{self.blocks - 2}: nothing lies behind the last block")
        for key, units in self.path.items():
            layer, site = key
            if not self.onset <= layer < self.blocks or site not in self.sites:
                raise ValueError(f"path has units at {key}, outside layers {self.onset}..{self.blocks - 1} and sites")
            if key not in self.plus:
                raise ValueError(f"path has units at {key}, of which the trace holds no statistics")
            known = self.plus[key].units
            if len(units) and not 0 <= int(units.min()) <= int(units.max()) < known:
                raise ValueError(f"path at {key} must be indices in 0..{known - 1}")

    def score(self, key: Key) -> Tensor:
        """What ranks the units of one place, [m] float64.

        At l* ΔWFS of latents, or |Z_proj| of coordinates; behind it FIS or FIS_c.
        """
        if key[0] == self.onset:
            if self.unit == "latent":
                return delta_wfs(self.plus[key], self.minus[key])
            return back_projection(self.saes[key].decoder, self.features[key]).abs().double()
        return fis(self.plus[key], self.delta[key], self.minus[key] if self.contrast else None)

    @property
    def n_units(self) -> int:
        """Units on the path, over all layers and sites."""
        return sum(len(units) for units in self.path.values())

    def with_path(self, path: Mapping[Key, Tensor]) -> Trace:
        """The same trace with other units cut: what a control does in the path's place."""
        return replace(self, path=dict(path))

    def summary(self) -> pd.DataFrame:
        """One row for each layer and site: units K, share of the score they hold, mean f and μ on both prompt sets."""
        rows: list[dict[str, Any]] = []
        for key, units in self.path.items():
            score, here = self.score(key).clamp(min=0), units.cpu()
            total, plus, minus = score.sum().item(), self.plus[key], self.minus[key]
            rows.append(
                {
                    "layer": key[0],
                    "site": key[1],
                    "role": "source" if key[0] == self.onset else "path",
                    "K": len(units),
                    "mass": score[here].sum().item() / total if total else 0.0,
                    "f": _mean(plus.frequency, here),
                    "mu": _mean(plus.mean_active, here),
                    "f matched": _mean(minus.frequency, here),
                    "mu matched": _mean(minus.mean_active, here),
                }
            )
        return pd.DataFrame(rows)

    def check(self, model: nn.Module, adapter: Adapter = DECODER) -> None:
        """Makes sure that this is the model that was traced.

        Raises:
            ValueError: for another number of blocks, hidden size, or other weights.
        """
        blocks, width = len(adapter.blocks(model)), hidden_size(model)
        for name, mine, theirs in (("blocks", self.blocks, blocks), ("hidden size", self.width, width)):
            if mine != theirs:
                raise ValueError(f"trace was made on a model with {name} {mine}, this one has {theirs}: trace it anew")
        if model_hash(model) != self.model_hash:
            raise ValueError(f"trace was made on other weights ({self.model_name or 'unnamed'}): trace this model anew")

    def figure(self, edges: Mapping[tuple[Key, Key], Tensor] | None = None) -> Figure:
        """Onset curve, and the severed path layer by layer; see `tracerouter.report.path_figure`."""
        from tracerouter.report import path_figure

        return path_figure(self, edges)

    def save(self, folder: str | Path) -> None:
        """Writes `trace.safetensors` and, when that is whole, `trace.json` with its hash."""
        folder = Path(folder)
        tensors: dict[str, Tensor] = {}
        for key in self.plus:
            for name in ("tokens", "active", "total"):
                tensors[f"plus.{_name(key)}.{name}"] = getattr(self.plus[key], name)
                tensors[f"minus.{_name(key)}.{name}"] = getattr(self.minus[key], name)
        for kind in ("path", "features", "delta"):
            tensors |= {f"{kind}.{_name(key)}": tensor for key, tensor in getattr(self, kind).items()}
        for key, sae in self.saes.items():
            tensors |= {f"sae.{_name(key)}.{name}": tensor for name, tensor in sae.state_dict().items()}
        content = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
        meta: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN}
        meta["path"] = {_name(key): units.tolist() for key, units in self.path.items()}  # to be read by people
        meta["saes"] = {_name(key): sae.k for key, sae in self.saes.items()}
        meta["signs"] = {_name(key): activity.sign for key, activity in self.plus.items()}
        meta |= {"format": FORMAT, "tensors_sha256": hashlib.sha256(content).hexdigest()}
        write_atomic(folder / "trace.safetensors", content)
        write_atomic(folder / "trace.json", json.dumps(meta, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Trace:
        """A trace that `save` wrote.

        Raises:
            ValueError: naming the folder, when a file is missing, torn, or of another format.
        """
        folder = Path(folder)
        try:
            meta = json.loads((folder / "trace.json").read_text())
            content = (folder / "trace.safetensors").read_bytes()
            if meta["format"] != FORMAT or hashlib.sha256(content).hexdigest() != meta["tensors_sha256"]:
                raise ValueError("the two files do not belong together")
            tensors = load(content)
            parts: dict[str, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                kind, rest = name.split(".", 1)
                parts.setdefault(kind, {})[rest] = tensor
            saes = {_key(name): _sae(parts["sae"], name, k) for name, k in meta["saes"].items()}
            signs = meta["signs"]  # in the order of layers and sites, which a safetensors file does not keep
            kept = {
                kind: {_key(name): parts[kind][name] for name in signs if name in parts.get(kind, {})}
                for kind in _TENSORS
            }
            plus, minus = ({_key(n): _activity(parts[kind], n, signs[n]) for n in signs} for kind in ("plus", "minus"))
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"folder {str(folder)!r} holds no readable trace ({reason}): fit and save it anew"
            ) from None
        fields: dict[str, Any] = {name: meta[name] for name in _PLAIN} | kept
        fields |= {name: tuple(fields[name]) for name in ("sites", "onset_curve")}
        return cls(**fields, saes=saes, plus=plus, minus=minus)


_PLAIN = ("onset", "onset_curve", "sites", "unit", "contrast", "blocks", "width", "model_name", "model_hash")
_TENSORS = ("path", "features", "delta")


def hidden_size(model: nn.Module) -> int:
    """Width of the (language tower's) residual stream by the model's config, 0 where it has none."""
    config = getattr(model, "config", None)
    inner = getattr(config, "get_text_config", None)
    return int(getattr(inner() if inner else config, "hidden_size", 0))


def _mean(values: Tensor, units: Tensor) -> float:
    return values.cpu()[units].mean().item() if len(units) else float("nan")


def _name(key: Key) -> str:
    return f"{key[0]}.{key[1]}"


def _key(name: str) -> Key:
    layer, site = name.split(".", 1)
    return int(layer), site  # type: ignore[return-value]  # checked against sites when the trace is made


def _activity(parts: Mapping[str, Tensor], name: str, sign: Any) -> Activity:
    activity = Activity(len(parts[f"{name}.active"]), sign=sign)
    for part in ("tokens", "active", "total"):
        setattr(activity, part, parts[f"{name}.{part}"])
    return activity


def _sae(parts: Mapping[str, Tensor], name: str, k: int | None) -> SparseAutoencoder:
    names = ("encoder", "encoder_bias", "decoder", "bias", "reach")
    weights: dict[str, Any] = {part: parts[f"{name}.{part}"] for part in names}
    return SparseAutoencoder.from_weights(**weights, k=k, origin=name)

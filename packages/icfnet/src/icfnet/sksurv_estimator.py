"""ICFNet as an estimator of scikit-learn and scikit-survival: fit, predict, score, survival curves, save and load."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from aisec_common.files import write_atomic
from aisec_common.seeding import derived_seed
from aisec_common.study import content_hash
from aisec_common.torch.device import resolve_device
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from sksurv.base import SurvivalAnalysisMixin
from sksurv.functions import StepFunction
from sksurv.metrics import concordance_index_censored
from torch import Tensor

from icfnet.batches import Inputs, InputSizes, Scales
from icfnet.bins import TimeBins
from icfnet.cohort import Cohort, StoredBag
from icfnet.config import MODALITIES, ICFNetConfig, require_modalities
from icfnet.likelihood import log_survival, risk
from icfnet.network import ICFNet
from icfnet.sksurv_report import uses_treatment
from icfnet.training import Schedule, train

if TYPE_CHECKING:
    from icfnet.hf_text import FrozenTextTower

MODEL, WEIGHTS = "model.json", "model.safetensors"
CONFIGURED = tuple(ICFNetConfig.__dataclass_fields__)
SCHEDULED = tuple(Schedule.__dataclass_fields__)


class ICFNetSurvival(SurvivalAnalysisMixin, BaseEstimator):  # type: ignore[misc]
    """Discrete-time survival from any of three modalities, missing ones allowed at fit and at predict.

    X is a `Cohort`; y is taken from it unless it is given. Scales, race codes and time bins are fitted on the patients
    of `fit` alone. A modality that no patient of `fit` has is left out of the network (`modalities_`). Besides the
    arguments below it takes those of `ICFNetConfig` (what the network is) and of `Schedule` (how it is trained).

    Args:
        text_model: `tiny` (random weights, vocabulary of the sentences of `fit`), a checkpoint's name or folder, or a
            `FrozenTextTower`, which several estimators may share.
        bins: `train`, quantiles over the patients of `fit`; or n + 1 edges, such as
            `TimeBins.fit(cohort.time, cohort.event).edges` over the whole cohort, the leak of the paper's numbers.
        race_encoding: `onehot`, or `ordinal`: the code as one number (the released code).
        device: `auto`, `cpu`, `cuda`, ...
        out: folder for a checkpoint after each epoch; a second `fit` with the same data and settings goes on from it.

    Raises:
        ValueError: in `fit` and `predict`, for what `Cohort`, `ICFNetConfig`, `Schedule`, `TimeBins`, `Scales` refuse.

    Attributes:
        config_: the network's configuration. bins_: TimeBins. modalities_: those the network reads.
        losses_: mean loss of each epoch. unique_times_: where survival functions step, months.
        trained_on_: sha256 of the ids of the patients of `fit`. treatment_: whether it read of their treatments.

    >>> from icfnet.cohort import Cohort
    >>> genes = {"Oncogenes": torch.linspace(-1, 1, 12)[:, None]}
    >>> cohort = Cohort(ids=tuple("abcdefghijkl"), time=np.arange(12.0), event=[1, 1, 1, 0] * 3, genes=genes)
    >>> model = ICFNetSurvival(modalities=("genes",), width=8, heads=2, epochs=2).fit(cohort)
    >>> model.predict(cohort).shape, model.predict_survival_function(cohort, return_array=True).shape
    ((12,), (12, 12))
    """

    def __init__(
        self,
        *,
        modalities: tuple[str, ...] = MODALITIES,
        text_model: str | FrozenTextTower = "tiny",
        bins: Literal["train"] | Sequence[float] = "train",
        race_encoding: Literal["onehot", "ordinal"] = "onehot",
        loss: Literal["balanced_nll", "nll"] = "balanced_nll",
        ot: bool = True,
        rod: bool = True,
        fusion: Literal["unification", "concat", "late"] = "unification",
        aux_heads: Literal["pre", "post", "none"] = "pre",
        token_mixing: Literal["full", "isolated"] = "full",
        width: int = 256,
        heads: int = 8,
        feedforward: int | None = None,
        layers: int = 2,
        dropout: float = 0.25,
        n_bins: int = 4,
        ot_reg: float = 0.05,
        ot_tau: float = 0.5,
        alpha: float = 0.0,
        beta: float = 1.0,
        aux_weight: float = 0.1,
        epochs: int = 20,
        batch_size: int = 32,
        learning_rate: float = 2e-4,
        weight_decay: float = 1e-5,
        optimizer: Literal["adam", "adamw"] = "adam",
        max_patches: int | None = None,
        seed: int = 1,
        device: str = "cpu",
        out: str | Path | None = None,
    ) -> None:
        given = dict(locals())
        for name in type(self)._get_param_names():
            setattr(self, name, given[name])

    def fit(
        self, X: Cohort, y: NDArray[np.void] | None = None, *, show: Callable[[str, int, int], None] | None = None
    ) -> ICFNetSurvival:
        """Trains on a cohort.

        Args:
            X: the patients.
            y: another outcome than theirs, as scikit-survival's structured array.
            show: told ("epochs", done, total).

        Raises:
            TypeError: when X is not a Cohort.
        """
        cohort = _cohort(X, y)
        schedule = Schedule(**{name: getattr(self, name) for name in SCHEDULED})
        require_modalities(self.modalities)
        if self.race_encoding not in ("onehot", "ordinal"):
            raise ValueError(f"race_encoding must be onehot or ordinal, got {self.race_encoding!r}")
        self.modalities_ = tuple(name for name in self.modalities if name in cohort.modalities)
        if not self.modalities_:
            raise ValueError(f"modalities: no patient of the cohort has any of {', '.join(self.modalities)}")
        settings = {name: getattr(self, name) for name in CONFIGURED} | {"modalities": self.modalities_}
        self.config_ = ICFNetConfig(**settings)
        self.bins_ = self._fit_bins(cohort)
        self.text_tower_ = self._tower(cohort)
        width = None if self.text_tower_ is None else self.text_tower_.width
        self.scales_ = Scales.fit(cohort, self.modalities_, text_width=width, race_encoding=self.race_encoding)
        inputs = self._inputs(cohort)
        self.network_ = self._network()
        self.unique_times_ = np.unique(cohort.time)
        self.trained_on_ = frozenset(map(content_hash, cohort.ids))
        self.treatment_ = uses_treatment(self, cohort)
        label = torch.from_numpy(self.bins_.label(cohort.time))
        recipe = self._recipe(cohort, schedule) if self.out is not None else ""
        out = None if self.out is None else Path(self.out)
        event = torch.from_numpy(cohort.event)
        self.losses_ = train(self.network_, inputs, label, event, schedule, out=out, recipe=recipe, show=show)
        return self

    def predict(self, X: Cohort) -> NDArray[np.float64]:
        """Risk = -sum_k S_k of each patient, `[n]`: the higher, the earlier the event is expected."""
        scores: NDArray[np.float64] = risk(self._logits(X)).numpy()
        return scores

    def score(self, X: Cohort, y: NDArray[np.void] | None = None) -> float:
        """Harrell's C-index of the risks, by scikit-survival with `tied_tol=1e-8`."""
        cohort = _cohort(X, y)
        return float(concordance_index_censored(cohort.event, cohort.time, self.predict(cohort), tied_tol=1e-8)[0])

    def predict_survival_function(self, X: Cohort, return_array: bool = False) -> NDArray[Any]:
        """Survival over time: `[n]` step functions, or `[n, len(unique_times_)]`; linear inside a bin."""
        survival = log_survival(self._logits(X)).exp().numpy()
        return self._functions(self.bins_.interpolate(survival, self.unique_times_), return_array)

    def predict_cumulative_hazard_function(self, X: Cohort, return_array: bool = False) -> NDArray[Any]:
        """-log of the survival function: `[n]` step functions, or `[n, len(unique_times_)]`."""
        survival = self.predict_survival_function(X, return_array=True)
        return self._functions(-np.log(np.maximum(survival, np.finfo(float).tiny)), return_array)

    def save(self, folder: str | Path) -> None:
        """Writes `model.safetensors` and `model.json`; a checkpoint's text tower is named, not copied.

        Of the patients of `fit` it keeps hashes of their ids, so that `evaluate` can tell whom the model has seen.
        """
        check_is_fitted(self, "network_")
        tower = self.text_tower_
        params = self.get_params(deep=False) | {"out": None, "text_model": (tower and tower.source) or "tiny"}
        tensors = {f"network.{name}": tensor for name, tensor in self.network_.state_dict().items()}
        for kind in ("means", "deviations"):
            tensors |= {f"{kind}.{group}": tensor for group, tensor in getattr(self.scales_, kind).items()}
        if tower is not None and tower.source is None:
            tensors |= {f"tower.{name}": tensor for name, tensor in tower.model.state_dict().items()}
        told = {
            "params": params,
            "modalities": self.modalities_,
            "edges": self.bins_.edges,
            "times": self.unique_times_.tolist(),
            "sizes": asdict(self.scales_.sizes),
            "races": self.scales_.races,
            "words": None if tower is None else tower.words,
            "losses": self.losses_,
            "trained_on": sorted(self.trained_on_),
            "treatment": self.treatment_,
        }
        weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        write_atomic(Path(folder) / WEIGHTS, weights)
        write_atomic(Path(folder) / MODEL, json.dumps(told, indent=1) + "\n")

    @classmethod
    def load(
        cls, folder: str | Path, *, text_model: FrozenTextTower | None = None, device: str = "cpu"
    ) -> ICFNetSurvival:
        """The estimator that was saved.

        Args:
            folder: of `save`.
            text_model: instead of the checkpoint that was named; of the same weights.
            device: where it goes.

        Raises:
            ValueError: when the folder holds no model.
        """
        file = Path(folder) / MODEL
        if not file.is_file():
            raise ValueError(f"folder: {folder} holds no {MODEL}; give the folder of ICFNetSurvival.save")
        told = json.loads(file.read_text(encoding="utf-8"))
        tensors = load_file(Path(folder) / WEIGHTS)

        def part(kind: str) -> dict[str, Tensor]:
            return {name[len(kind) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{kind}.")}

        for name in ("modalities", "bins"):
            if isinstance(told["params"][name], list):
                told["params"][name] = tuple(told["params"][name])
        model = cls(**told["params"] | {"device": device} | ({"text_model": text_model} if text_model else {}))
        model.modalities_ = tuple(told["modalities"])
        settings = {name: getattr(model, name) for name in CONFIGURED} | {"modalities": model.modalities_}
        model.config_, model.bins_ = ICFNetConfig(**settings), TimeBins(edges=tuple(told["edges"]))
        races = None if told["races"] is None else tuple(told["races"])
        sizes = InputSizes(**told["sizes"])
        model.scales_ = Scales(sizes=sizes, means=part("means"), deviations=part("deviations"), races=races)
        model.unique_times_, model.losses_ = np.asarray(told["times"]), told["losses"]
        model.trained_on_, model.treatment_ = frozenset(told["trained_on"]), told["treatment"]
        model.text_tower_ = None
        if sizes.text is not None and text_model is None and model.text_model == "tiny":
            from icfnet.hf_text import FrozenTextTower

            model.text_tower_ = FrozenTextTower.of_words(told["words"], device=device)
            model.text_tower_.model.load_state_dict(part("tower"))
        elif sizes.text is not None:
            model.text_tower_ = model._named_tower()
        model.network_ = model._network()
        model.network_.load_state_dict(part("network"))
        model.network_.eval()
        return model

    def _fit_bins(self, cohort: Cohort) -> TimeBins:
        if isinstance(self.bins, str):
            if self.bins != "train":
                raise ValueError(f"bins must be 'train' or n_bins + 1 edges, got {self.bins!r}; see TimeBins.fit")
            return TimeBins.fit(cohort.time, cohort.event, n_bins=self.n_bins)
        bins = TimeBins(edges=tuple(self.bins))
        if bins.n != self.n_bins:
            raise ValueError(f"bins must be n_bins + 1 = {self.n_bins + 1} edges, got {bins.n + 1}")
        if not cohort.event.any():
            raise ValueError("event: no patient has an event; nothing can be learnt about the hazard")
        return bins

    def _tower(self, cohort: Cohort) -> FrozenTextTower | None:
        sentences = [text for pair in cohort.text or () for text in pair or () if text]
        if "text" not in self.modalities_ or not sentences:
            return None
        if self.text_model == "tiny":
            from icfnet.hf_text import FrozenTextTower

            return FrozenTextTower.tiny(sentences, device=resolve_device(self.device))
        return self._named_tower()

    def _named_tower(self) -> FrozenTextTower:
        from icfnet.hf_text import FrozenTextTower  # transformers takes seconds to load: only with sentences

        if isinstance(self.text_model, FrozenTextTower):
            return self.text_model
        return FrozenTextTower.load(self.text_model, device=resolve_device(self.device))

    def _network(self) -> ICFNet:
        with torch.random.fork_rng(devices=[]):  # layers draw their initial weights from the global generator
            torch.manual_seed(derived_seed(self.seed, "network"))
            network = ICFNet(self.config_, self.scales_.sizes)
        return network.to(resolve_device(self.device)).eval()

    def _inputs(self, cohort: Cohort) -> Inputs:
        embeddings = None
        if self.text_tower_ is not None and self.scales_.sizes.text is not None and cohort.text is not None:
            embeddings = torch.zeros(len(cohort), 2, self.scales_.sizes.text)
            spoken = [(i, j, text) for i, pair in enumerate(cohort.text) for j, text in enumerate(pair or ()) if text]
            if spoken:
                rows, columns, sentences = zip(*spoken, strict=True)
                embeddings[list(rows), list(columns)] = self.text_tower_.encode(sentences)
        return Inputs(cohort, self.scales_, self.modalities_, embeddings)

    @torch.no_grad()
    def _logits(self, X: Cohort) -> Tensor:
        """`[n, n_bins]` of whole bags, in double precision on the CPU."""
        check_is_fitted(self, "network_")
        inputs = self._inputs(_cohort(X, None))
        device = next(self.network_.parameters()).device
        batches = inputs.whole(device, self.batch_size, max_patches=self.max_patches)
        return torch.cat([self.network_(batch).logits.cpu() for batch in batches]).double()

    def _functions(self, values: NDArray[np.float64], return_array: bool) -> NDArray[Any]:
        if return_array:
            return values
        functions = np.empty(len(values), dtype=object)
        functions[:] = [StepFunction(self.unique_times_, row) for row in values]
        return functions

    def _recipe(self, cohort: Cohort, schedule: Schedule) -> str:
        """A hash of everything that decides the weights."""
        bags = [None if bag is None else (list(bag.shape), _identity(bag)) for bag in cohort.bags or ()]
        tables = {"time": cohort.time, "event": cohort.event, "genes_present": cohort.genes_present}
        tables |= {f"genes.{group}": table.numpy() for group, table in (cohort.genes or {}).items()}
        if cohort.structured is not None:
            tables["structured"] = cohort.structured.numpy()
        tower = self.text_tower_
        told = {
            "config": asdict(self.config_),
            "schedule": asdict(schedule),
            "edges": self.bins_.edges,
            "races": self.scales_.races,
            "tower": None if tower is None else (tower.source, tower.words),
            "ids": cohort.ids,
            "text": cohort.text,
            "bags": bags,
            "tables": {name: content_hash(table) for name, table in tables.items()},
            "torch": torch.__version__,
        }
        return content_hash(json.dumps(told, sort_keys=True))


def _identity(bag: Tensor | StoredBag) -> object:
    return float(bag.double().sum()) if isinstance(bag, Tensor) else bag.identity


def _cohort(X: Cohort, y: NDArray[np.void] | None) -> Cohort:
    if not isinstance(X, Cohort):
        raise TypeError(f"X must be an icfnet.Cohort, got {type(X).__name__}")
    if y is None:
        return X
    if y.dtype.names is None or len(y.dtype.names) != 2 or len(y) != len(X):
        raise ValueError("y must be a structured array (event, time) with a row for each patient; see Cohort.surv")
    event, time = y.dtype.names
    return X.with_outcome(y[time], y[event])

"""Peers from scikit-survival on the same inputs as tables: a penalised Cox model and a random survival forest."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from aisec_common.seeding import derived_seed
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.feature_selection import VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sksurv.ensemble import RandomSurvivalForest
from sksurv.linear_model import CoxnetSurvivalAnalysis

from icfnet.clinical_text import RACES
from icfnet.cohort import RACE, Cohort
from icfnet.config import MODALITIES
from icfnet.sksurv_report import concordance

Show = Callable[[str, int, int], None]


def cohort_table(cohort: Cohort, modalities: Sequence[str] = MODALITIES, facts: Sequence[str] = ()) -> pd.DataFrame:
    """A cohort as one row a patient, NaN where something is not known.

    Patches enter by their mean, text by the structured facts it was written from, race one column each.

    Args:
        cohort: the patients.
        modalities: what enters.
        facts: columns of `cohort.groups` that the sentences tell of and the structured facts do not.

    >>> from icfnet.sksurv_gse7390 import load_gse7390
    >>> cohort_table(load_gse7390(), facts=("size",)).shape
    (198, 86)
    """
    parts: dict[str, NDArray[Any] | pd.Series[Any]] = {}
    if "wsi" in modalities and cohort.bags is not None:
        width = next((bag.shape[1] for bag in cohort.bags if bag is not None), 0)
        empty = np.full(width, np.nan)
        means = np.stack(
            [empty if bag is None else cohort.patches(i).mean(0).double().numpy() for i, bag in enumerate(cohort.bags)]
        )
        parts |= {f"patch mean {i}": means[:, i] for i in range(width)}
    if "genes" in modalities:
        for group, columns in (cohort.genes or {}).items():
            values = np.where(np.asarray(cohort.genes_present)[:, None], columns.double().numpy(), np.nan)
            parts |= {f"{group} {i}": values[:, i] for i in range(values.shape[1])}
    if "text" in modalities:
        if cohort.structured is not None:
            values = cohort.structured.double().numpy()
            values = np.where(values == -1, np.nan, values)
            named = dict(enumerate(("sex", "age", "race", "pharmaceutical", "radiation")))
            parts |= {name: values[:, i] for i, name in named.items() if i != RACE}
            known = ~np.isnan(values[:, RACE])
            parts |= {name: np.where(known, values[:, RACE] == code, np.nan) for code, name in enumerate(RACES)}
        parts |= {name: cohort.groups[name].reset_index(drop=True) for name in facts}
    if not parts:
        raise ValueError(f"modalities: the cohort has none of {', '.join(modalities)}")
    return pd.DataFrame(parts)


class _TableModel(BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """What both peers share: the table, means for what is missing, standard scale."""

    _table: Pipeline
    _model: Any

    def __init__(self, *, modalities: Sequence[str] = MODALITIES, facts: Sequence[str] = (), seed: int = 0) -> None:
        self.modalities = modalities
        self.facts = facts
        self.seed = seed

    def _columns(self, cohort: Cohort) -> pd.DataFrame:
        return cohort_table(cohort, self.modalities, self.facts)

    def _fit_table(self, cohort: Cohort) -> NDArray[np.float64]:
        table = self._columns(cohort)
        words = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
        self._words = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(table[words]) if words else None
        self._table = make_pipeline(SimpleImputer(keep_empty_features=True), VarianceThreshold(1e-12), StandardScaler())
        return np.asarray(self._table.fit_transform(self._numbers(table)))

    def _numbers(self, table: pd.DataFrame) -> NDArray[np.float64]:
        if self._words is None:
            return table.to_numpy(dtype=np.float64)
        words = list(self._words.feature_names_in_)
        rest = table.drop(columns=words).to_numpy(dtype=np.float64)
        return np.hstack([rest, self._words.transform(table[words])])

    def _rows(self, cohort: Cohort) -> NDArray[np.float64]:
        return np.asarray(self._table.transform(self._numbers(self._columns(cohort))))

    def predict(self, X: Cohort) -> NDArray[np.float64]:
        """Risk `[n]`, higher for an earlier event."""
        return np.asarray(self._model.predict(self._rows(X)), dtype=np.float64)

    def predict_survival_function(self, X: Cohort) -> NDArray[Any]:
        """scikit-survival's step functions `[n]`."""
        return np.asarray(self._model.predict_survival_function(self._rows(X)))

    def score(self, X: Cohort, y: object = None) -> float:
        """Harrell's C-index."""
        return concordance(X.surv(), self.predict(X))[0]


class CoxnetBaseline(_TableModel):
    """`CoxnetSurvivalAnalysis` whose penalty is chosen by the C-index in inner folds of the training cohort.

    Args:
        modalities: what enters.
        facts: see `cohort_table`.
        l1_ratio: of the elastic net.
        folds: inner ones.
        seed: of the inner folds.

    >>> from icfnet.synthetic import synthetic_cohort
    >>> train, test = synthetic_cohort(0, patients=160, training=120).cohort.split(0)
    >>> CoxnetBaseline(modalities=("genes",)).fit(train).predict(test).shape
    (40,)
    """

    def __init__(
        self,
        *,
        modalities: Sequence[str] = MODALITIES,
        facts: Sequence[str] = (),
        l1_ratio: float = 0.5,
        folds: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__(modalities=modalities, facts=facts, seed=seed)
        self.l1_ratio = l1_ratio
        self.folds = folds

    def fit(self, X: Cohort, y: object = None, *, show: Show | None = None) -> CoxnetBaseline:
        """Fits the path of penalties, chooses one, and keeps the model at that one; `show` is told of the folds."""
        rows, outcome = self._fit_table(X), X.surv()
        path = self._path(rows, outcome, n_alphas=40, alpha_min_ratio=0.02)
        scores = np.zeros(len(path.alphas_))
        inner = StratifiedKFold(self.folds, shuffle=True, random_state=derived_seed(self.seed, "coxnet") % 2**32)
        for done, (train, test) in enumerate(inner.split(rows, X.event), start=1):
            fitted = self._path(rows[train], outcome[train], alphas=path.alphas_)
            risks = rows[test] @ fitted.coef_
            # a path may end early where a penalty no longer converges
            found = [concordance(outcome[test], risks[:, i])[0] for i in range(risks.shape[1])]
            scores += np.nan_to_num(np.pad(found, (0, len(scores) - len(found)), constant_values=0.5), nan=0.5)
            if show is not None:
                show("inner folds", done, self.folds)
        best = int(np.argmax(scores))
        self.alpha_ = float(path.alphas_[best])
        # down the path again: begun at zero, a weak penalty may run out of numbers; predictions take the last one
        self._model = self._path(rows, outcome, alphas=path.alphas_[: best + 1], fit_baseline_model=True)
        return self

    def _path(self, rows: NDArray[np.float64], outcome: NDArray[np.void], **settings: Any) -> CoxnetSurvivalAnalysis:
        with warnings.catch_warnings():  # the strongest penalty of a path is meant to leave no coefficient
            warnings.filterwarnings("ignore", "all coefficients are zero", UserWarning)
            return CoxnetSurvivalAnalysis(l1_ratio=self.l1_ratio, **settings).fit(rows, outcome)


class ForestBaseline(_TableModel):
    """`RandomSurvivalForest` of 100 trees with leaves of at least 10 patients.

    >>> from icfnet.synthetic import synthetic_cohort
    >>> train, test = synthetic_cohort(0, patients=90, training=60).cohort.split(0)
    >>> ForestBaseline(modalities=("text",)).fit(train).predict(test).shape
    (30,)
    """

    def fit(self, X: Cohort, y: object = None, *, show: Show | None = None) -> ForestBaseline:
        """Grows the forest; `show` is told when it has grown."""
        forest = RandomSurvivalForest(100, min_samples_leaf=10, random_state=derived_seed(self.seed, "forest") % 2**32)
        self._model = forest.fit(self._fit_table(X), X.surv())
        if show is not None:
            show("forest", 1, 1)
        return self

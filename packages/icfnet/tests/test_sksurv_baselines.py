import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from sksurv.linear_model import CoxnetSurvivalAnalysis

from icfnet.cohort import Cohort
from icfnet.sksurv_baselines import CoxnetBaseline, ForestBaseline, cohort_table
from icfnet.sksurv_gse7390 import FACTS, load_gse7390
from icfnet.sksurv_report import concordance
from icfnet.synthetic import synthetic_cohort

TRAIN, TEST = synthetic_cohort(0, patients=260, training=180).cohort.split(0)


def test_the_table_says_what_the_cohort_knows():
    table = cohort_table(TRAIN)
    assert table.shape == (180, 32 + 72 + 4 + 5)
    assert np.allclose(table["patch mean 3"], torch.stack(TRAIN.bags).mean(1)[:, 3])
    assert np.allclose(table["group 2 5"], TRAIN.genes["group 2"][:, 5])
    assert table.filter(["white", "asian", "black or african american"]).sum(axis=1).eq(1).all()
    assert list(cohort_table(TRAIN, ("text",)).columns[:4]) == ["sex", "age", "pharmaceutical", "radiation"]


def test_what_is_missing_is_nan():
    cohort = Cohort(
        ids=("a", "b"),
        time=[1, 2],
        event=[1, 1],
        bags=(None, torch.ones(2, 3)),
        genes={"g": torch.ones(2, 2)},
        genes_present=[True, False],
        structured=torch.tensor([[1.0, 0.5, -1, -1, 0], [0, 0.6, 1, 1, 1]]),
    )
    table = cohort_table(cohort)
    assert table.filter(like="patch").isna().all(axis=1).tolist() == [True, False]
    assert table.filter(regex="^g ").isna().all(axis=1).tolist() == [False, True]
    assert table.loc[0, ["white", "asian", "pharmaceutical"]].isna().all()
    with pytest.raises(ValueError, match="has none of wsi"):
        cohort_table(cohort.without("wsi"), ("wsi",))


def test_coxnet_is_that_of_scikit_survival_at_the_chosen_penalty():
    model = CoxnetBaseline(modalities=("genes",)).fit(TRAIN)
    scaler = StandardScaler().fit(cohort_table(TRAIN, ("genes",)))
    rows = scaler.transform(cohort_table(TRAIN, ("genes",)))
    peer = CoxnetSurvivalAnalysis(l1_ratio=0.5, alphas=[model.alpha_]).fit(rows, TRAIN.surv())
    risk = peer.predict(scaler.transform(cohort_table(TEST, ("genes",))))
    assert np.allclose(model.predict(TEST), risk)
    assert model.score(TEST) == concordance(TEST.surv(), risk)[0] > 0.55


@pytest.mark.parametrize("model", [CoxnetBaseline(), ForestBaseline()])
def test_peers_learn_and_keep_the_contract(model):
    fitted = model.fit(TRAIN)
    assert fitted.score(TEST) > 0.6
    functions = fitted.predict_survival_function(TEST)
    assert len(functions) == len(TEST)
    values = functions[0](np.linspace(*functions[0].domain, 9))
    assert (np.diff(values) <= 1e-12).all()
    again = type(model)(**model.get_params()).fit(TRAIN)
    assert np.array_equal(again.predict(TEST), fitted.predict(TEST))


def test_a_modality_a_test_patient_lacks_is_filled_with_the_mean():
    model = CoxnetBaseline().fit(TRAIN)
    torn = Cohort(
        ids=TEST.ids,
        time=TEST.time,
        event=TEST.event,
        bags=(None, *TEST.bags[1:]),
        genes=TEST.genes,
        genes_present=[False] + [True] * (len(TEST) - 1),
        structured=TEST.structured,
    )
    risk = model.predict(torn)
    assert np.isfinite(risk).all()
    assert np.allclose(risk[1:], model.predict(TEST)[1:])


def test_facts_of_the_sentences_enter_as_columns():
    train, test = load_gse7390().split(0)
    model = CoxnetBaseline(facts=FACTS).fit(train)
    assert np.isfinite(model.predict(test)).all()
    assert model.score(train) > 0.65


@pytest.mark.real
@pytest.mark.slow
def test_cox_reaches_a_weak_penalty_step_by_step():
    """Begun at the chosen penalty, this fold ends in an ArithmeticError."""
    from icfnet.real_comparison import load_cohort

    train, test = load_cohort("tcga-blca").split(4)
    model = CoxnetBaseline(modalities=("genes", "text")).fit(train)
    assert model.score(test) > 0.5
    with pytest.raises(ArithmeticError):
        model._path(model._rows(train), train.surv(), alphas=[model.alpha_])

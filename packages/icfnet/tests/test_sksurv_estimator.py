import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sksurv.metrics import concordance_index_censored, integrated_brier_score
from small_cohort import SMALL, small_cohort, stored_cohort

from icfnet.bins import TimeBins
from icfnet.hf_text import FrozenTextTower
from icfnet.sksurv_estimator import ICFNetSurvival

QUICK = {**SMALL, "epochs": 2, "batch_size": 8, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def cohort():
    return small_cohort(36)


@pytest.fixture(scope="module")
def model(cohort):
    return ICFNetSurvival(**QUICK).fit(cohort)


def test_parameters_are_scikit_learns(model):
    assert model.get_params()["learning_rate"] == 1e-2
    fresh = clone(model)
    assert fresh.get_params() == model.get_params()
    assert not hasattr(fresh, "network_")
    tower = FrozenTextTower.tiny(["a b"])
    assert clone(ICFNetSurvival(text_model=tower)).text_model is tower


def test_a_seed_gives_the_same_risks(model, cohort):
    np.testing.assert_array_equal(clone(model).fit(cohort).predict(cohort), model.predict(cohort))
    other = clone(model).set_params(seed=2).fit(cohort)
    assert not np.allclose(other.predict(cohort), model.predict(cohort))


def test_score_is_scikit_survivals(model, cohort):
    expected = concordance_index_censored(cohort.event, cohort.time, model.predict(cohort), tied_tol=1e-8)[0]
    assert model.score(cohort) == model.score(cohort, cohort.surv()) == expected


def test_survival_functions(model, cohort):
    surv = model.predict_survival_function(cohort, return_array=True)
    assert surv.shape == (36, len(np.unique(cohort.time)))
    assert (np.diff(surv, axis=1) <= 1e-12).all()
    assert ((surv >= 0) & (surv <= 1)).all()
    functions = model.predict_survival_function(cohort)
    np.testing.assert_allclose(functions[3](model.unique_times_), surv[3])
    hazard = model.predict_cumulative_hazard_function(cohort, return_array=True)
    np.testing.assert_allclose(np.exp(-hazard), surv)
    times = np.quantile(cohort.time, [0.2, 0.4, 0.6])
    at = np.stack([f(times) for f in functions])
    assert 0 < integrated_brier_score(cohort.surv(), cohort.surv(), at, times) < 0.5


def test_scikit_learns_searches_take_a_cohort(cohort):
    model = ICFNetSurvival(**{**QUICK, "epochs": 1, "modalities": ("genes",)})
    folds = KFold(3, shuffle=True, random_state=0)
    assert cross_val_score(model, cohort, cv=folds).shape == (3,)
    search = GridSearchCV(model, {"loss": ["nll", "balanced_nll"]}, cv=folds).fit(cohort, cohort.surv())
    assert search.best_params_["loss"] in ("nll", "balanced_nll")
    assert search.predict(cohort).shape == (36,)


def test_y_replaces_the_outcome(cohort):
    order = np.random.default_rng(0).permutation(36)
    permuted = cohort.with_outcome(cohort.time[order], cohort.event[order])
    model = ICFNetSurvival(**QUICK, modalities=("genes",))
    by_y = clone(model).fit(cohort, permuted.surv())
    np.testing.assert_array_equal(by_y.predict(cohort), clone(model).fit(permuted).predict(cohort))


def test_save_and_load(model, cohort, tmp_path):
    model.save(tmp_path)
    loaded = ICFNetSurvival.load(tmp_path)
    np.testing.assert_array_equal(loaded.predict(cohort), model.predict(cohort))
    assert loaded.get_params() == model.get_params()
    assert loaded.trained_on_ == model.trained_on_
    assert (len(loaded.trained_on_), loaded.treatment_) == (36, True)
    assert '"p7"' not in (tmp_path / "model.json").read_text()  # hashes, no ids
    np.testing.assert_array_equal(
        loaded.predict_survival_function(cohort, return_array=True),
        model.predict_survival_function(cohort, return_array=True),
    )
    with pytest.raises(ValueError, match=r"holds no model\.json"):
        ICFNetSurvival.load(tmp_path / "nowhere")


def test_a_named_tower_is_loaded_by_its_name(cohort, tmp_path):
    tiny = FrozenTextTower.tiny([text for pair in cohort.text for text in pair])
    tiny.model.save_pretrained(tmp_path / "tower")
    tiny.tokenizer.save_pretrained(tmp_path / "tower")
    model = ICFNetSurvival(**QUICK, modalities=("text",), text_model=str(tmp_path / "tower")).fit(cohort)
    model.save(tmp_path / "model")
    for given in (None, tiny):
        loaded = ICFNetSurvival.load(tmp_path / "model", text_model=given)
        np.testing.assert_allclose(loaded.predict(cohort), model.predict(cohort), rtol=1e-5)


def test_fit_goes_on_in_its_folder(cohort, tmp_path):
    class Killed(Exception):
        pass

    def kill(what, done, total):
        raise Killed

    model = ICFNetSurvival(**QUICK, out=tmp_path)
    with pytest.raises(Killed):
        clone(model).fit(cohort, show=kill)
    shown = []
    resumed = clone(model).fit(cohort, show=lambda *told: shown.append(told))
    assert shown == [("epochs", 2, 2)]
    whole = clone(model).set_params(out=None).fit(cohort)
    np.testing.assert_array_equal(resumed.predict(cohort), whole.predict(cohort))
    with pytest.raises(ValueError, match=r"out: .* another cohort or setting"):
        clone(model).fit(cohort.take(slice(0, 30)))


def test_a_stored_bag_is_known_without_reading_it(cohort, tmp_path):
    stored, reads = stored_cohort(36)
    model = ICFNetSurvival(**{**QUICK, "epochs": 1}, out=tmp_path).fit(stored)
    drawn = reads()
    assert sum(drawn) == 36  # one epoch of 36 draws
    np.testing.assert_array_equal(model.predict(stored), clone(model).set_params(out=None).fit(cohort).predict(cohort))
    assert [after - before for after, before in zip(reads(), drawn, strict=True)] == [1] * 36
    clone(model).fit(stored)  # at its last epoch: nothing is read
    assert sum(reads()) == 2 * 36
    stored.bags[0].identity = "another file"
    with pytest.raises(ValueError, match=r"out: .* another cohort or setting"):
        clone(model).fit(stored)


def test_a_prediction_reads_whole_bags_in_any_order_of_patches(cohort):
    model = ICFNetSurvival(**QUICK, max_patches=2).fit(cohort)
    reversed_bags = small_cohort(36, bags=tuple(bag.flip(0) for bag in cohort.bags))
    np.testing.assert_allclose(model.predict(reversed_bags), model.predict(cohort), rtol=1e-5)
    np.testing.assert_allclose(model.set_params(max_patches=None).predict(cohort), model.predict(cohort), rtol=1e-5)


def test_modalities_that_nobody_has_are_left_out(cohort):
    model = ICFNetSurvival(**QUICK).fit(cohort.without("wsi"))
    assert model.modalities_ == ("genes", "text")
    assert model.treatment_
    assert not clone(model).set_params(epochs=1).fit(cohort.without("treatment")).treatment_
    np.testing.assert_array_equal(model.predict(cohort), model.predict(cohort.without("wsi")))
    with pytest.raises(ValueError, match="no patient of the cohort has any of wsi"):
        ICFNetSurvival(**QUICK, modalities=("wsi",)).fit(cohort.without("wsi"))


def test_given_bins(cohort):
    edges = TimeBins.fit(cohort.time, cohort.event).edges
    model = ICFNetSurvival(**{**QUICK, "epochs": 1}, bins=edges, modalities=("genes",))
    assert model.fit(cohort.take(slice(0, 20))).bins_.edges == edges
    with pytest.raises(ValueError, match="bins must be n_bins \\+ 1 = 6 edges"):
        clone(model).set_params(n_bins=5).fit(cohort)
    with pytest.raises(ValueError, match="bins must be 'train'"):
        clone(model).set_params(bins="cohort").fit(cohort)
    with pytest.raises(ValueError, match="event: no patient has an event"):
        clone(model).fit(cohort.with_outcome(cohort.time, np.zeros(36, dtype=bool)))


def test_wrong_input(model, cohort):
    with pytest.raises(TypeError, match=r"X must be an icfnet\.Cohort, got list"):
        model.predict([1, 2])
    with pytest.raises(ValueError, match="y must be a structured array"):
        model.fit(cohort, np.zeros(36))
    with pytest.raises(ValueError, match="race_encoding"):
        ICFNetSurvival(race_encoding="words").fit(cohort)
    facts = torch.full((36, 5), -1.0)
    nothing = small_cohort(36, bags=None, genes=None, text=None, structured=facts)
    with pytest.raises(ValueError, match="patient 'p0' has none of"):
        model.predict(nothing)

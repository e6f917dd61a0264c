import numpy as np
import pytest

from icfnet.arms import ARMS, PEERS, SWITCHES, fit_with_curve, make_arm, permuted
from icfnet.sksurv_estimator import ICFNetSurvival
from icfnet.synthetic import synthetic_cohort

TRAIN, TEST = synthetic_cohort(0, patients=60, training=40).cohort.split(0)
LIKE = ICFNetSurvival(width=8, heads=2, layers=1, epochs=2, batch_size=16, seed=3)


def test_an_arm_differs_in_its_switches_alone():
    for arm, switches in SWITCHES.items():
        settings = make_arm(arm, LIKE).get_params()
        assert settings == LIKE.get_params() | dict(switches)
    assert len({str(sorted(switches.items())) for switches in SWITCHES.values()}) == len(SWITCHES)


def test_peers_take_the_seed_and_the_modalities():
    for arm in PEERS:
        peer = make_arm(arm, ICFNetSurvival(modalities=("genes",), seed=9), facts=("er",))
        assert (peer.modalities, peer.seed, peer.facts) == (("genes",), 9, ("er",))


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm not in PEERS])
def test_every_arm_fits_and_predicts(arm):
    model = make_arm(arm, LIKE).set_params(epochs=1).fit(TRAIN)
    assert np.isfinite(model.predict(TEST)).all()


def test_scoring_every_epoch_changes_nothing():
    watched, plain = (make_arm("omic-only", LIKE) for _ in range(2))
    told = []
    curve = fit_with_curve(watched, TRAIN, TEST, show=lambda what, done, total: told.append((done, total)))
    plain.fit(TRAIN)
    assert np.array_equal(watched.predict(TEST), plain.predict(TEST))
    assert curve[-1] == plain.score(TEST)
    assert told == [(1, 2), (2, 2)]


def test_permuted_outcomes_are_the_same_ones_of_other_patients():
    once, twice = permuted(TRAIN, 0), permuted(TRAIN, 0)
    assert np.array_equal(once.time, twice.time)
    assert not np.array_equal(once.time, TRAIN.time)
    assert sorted(zip(once.time, once.event, strict=True)) == sorted(zip(TRAIN.time, TRAIN.event, strict=True))
    assert once.ids == TRAIN.ids


def test_what_is_no_arm_is_refused():
    with pytest.raises(ValueError, match="arm must be one of"):
        make_arm("nosuch", LIKE)
    with pytest.raises(TypeError, match="like"):
        make_arm("icfnet", object())

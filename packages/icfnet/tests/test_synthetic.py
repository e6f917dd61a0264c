import numpy as np
import pytest
import torch

from icfnet.sksurv_report import concordance
from icfnet.synthetic import synthetic_cohort


@pytest.fixture(scope="module")
def made():
    return synthetic_cohort(0, patients=3000, training=500)


def test_the_oracle_and_the_censoring_are_those_of_the_spec():
    oracles, censored = [], []
    for seed in range(6):
        made = synthetic_cohort(seed)
        oracles.append(concordance(made.cohort.surv(), made.log_risk)[0])
        censored.append(1 - made.cohort.event.mean())
    assert np.mean(oracles) == pytest.approx(0.79, abs=0.015)
    assert 0.36 < np.mean(censored) < 0.41


def test_every_modality_tells_of_the_risk_and_race_does_not(made):
    cohort, risk = made.cohort, made.log_risk
    patches = torch.stack([bag.square().sum(1).mean() for bag in cohort.bags]).numpy()
    genes = torch.cat(list(cohort.genes.values()), dim=1).numpy()
    fitted = genes @ np.linalg.lstsq(genes, risk, rcond=None)[0]
    sex, age, race, treated, _ = cohort.structured.numpy().T
    assert np.corrcoef(patches, risk)[0, 1] > 0.3
    assert np.corrcoef(fitted, risk)[0, 1] > 0.45
    assert np.corrcoef(age, risk)[0, 1] > 0.3
    assert np.corrcoef(treated, risk)[0, 1] < -0.1
    assert abs(np.corrcoef(race, risk)[0, 1]) < 0.06
    assert abs(np.corrcoef(sex, risk)[0, 1]) < 0.06


def test_the_share_of_shifted_patches_is_at_most_two_fifths(made):
    bags = torch.stack(made.cohort.bags)
    shift = bags.mean((0, 1))
    direction = shift / shift.norm()
    along = bags @ direction
    assert 0.1 < (along > 1.5).float().mean() < 0.3
    assert shift.norm() == pytest.approx(3 * 0.2, abs=0.05)  # the mean fraction is 0.4 / 2


def test_text_tells_what_the_table_tells(made):
    demographic, treatment = made.cohort.text[0]
    sex, age, _, pharmaceutical, radiation = made.cohort.structured[0].tolist()
    assert f"{100 * age:.0f}-year-old" in demographic
    assert demographic.endswith("woman." if sex else " man.")
    assert (" pharmaceutical" in treatment and "neither" not in treatment) == bool(pharmaceutical)
    assert ("radiation" in treatment and "neither" not in treatment) == bool(radiation)


def test_a_seed_gives_the_same_patients():
    once, twice, other = (synthetic_cohort(seed, patients=30, training=20) for seed in (1, 1, 2))
    assert np.array_equal(once.cohort.time, twice.cohort.time)
    assert torch.equal(once.cohort.bags[3], twice.cohort.bags[3])
    assert not np.array_equal(once.cohort.time, other.cohort.time)


def test_the_split_must_leave_someone():
    with pytest.raises(ValueError, match="training"):
        synthetic_cohort(0, patients=10, training=10)

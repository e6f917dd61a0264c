import numpy as np
import torch
from sksurv.datasets import load_breast_cancer

from icfnet.sksurv_gse7390 import FACTS, load_gse7390


def test_the_cohort_is_the_bundled_one():
    table, outcome = load_breast_cancer()
    cohort = load_gse7390()
    assert len(cohort) == 198
    assert cohort.modalities == ("genes", "text")
    assert [block.shape[1] for block in cohort.genes.values()] == [13, 13, 13, 13, 12, 12]
    genes = torch.cat(list(cohort.genes.values()), dim=1).numpy()
    assert np.allclose(genes, table.iloc[:, :76].to_numpy())
    assert np.allclose(cohort.time * 365.25 / 12, outcome["t.tdm"])
    assert np.array_equal(cohort.event, outcome["e.tdm"])
    assert set(FACTS) <= set(cohort.groups)


def test_sentences_tell_the_clinical_columns():
    cohort = load_gse7390()
    for (demographic, tumour), facts, age in zip(
        cohort.text, cohort.groups.itertuples(), cohort.structured[:, 1].tolist(), strict=True
    ):
        assert f"{100 * age:.0f}-year-old woman" in demographic
        assert f"ER {facts.er}" in tumour
        assert f"{facts.size:.1f} cm" in tumour
        assert ("differentiated" in tumour or "grade" in tumour) == (facts.grade != "unknown")


def test_five_folds_cover_everyone_once_with_events_alike():
    cohort = load_gse7390(seed=3)
    tests = [cohort.split(fold)[1] for fold in range(5)]
    assert sorted(name for test in tests for name in test.ids) == sorted(cohort.ids)
    assert {int(test.event.sum()) for test in tests} <= {10, 11}
    assert load_gse7390(seed=4).folds[0] != cohort.folds[0]

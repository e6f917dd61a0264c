import numpy as np
import pandas as pd
import pytest
import torch
from small_cohort import small_cohort, stored_cohort

from icfnet.cohort import Cohort, known_rows


def with_bag(bag):
    bags = list(small_cohort(4).bags)
    bags[2] = bag
    return {"bags": tuple(bags)}


def with_genes(value):
    table = torch.zeros(4, 2)
    table[3, 1] = value
    return {"genes": {"Oncogenes": table}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ids": ("a", "b", "a", "c")}, "'a' comes 2 times"),
        ({"time": np.ones(3)}, "time must have one row for each of the 4 ids"),
        ({"time": np.array([1.0, -2, 3, 4])}, "time of patient 'p1' must be >= 0"),
        ({"time": np.array([1.0, 2, np.nan, 4])}, "time of patient 'p2'"),
        (with_bag(torch.zeros(0, 5)), "patient 'p2' has 0 patches"),
        (with_bag(torch.zeros(3, 4)), "patient 'p2' has 4 features a patch, others have 5"),
        (with_bag(torch.zeros(3, dtype=torch.long)), "patient 'p2' needs floating"),
        (with_genes(torch.nan), "genes\\['Oncogenes'\\] of patient 'p3' are not finite"),
        ({"genes": {"Oncogenes": torch.zeros(3, 2)}}, "genes\\['Oncogenes'\\] must have one row"),
        ({"genes": {"Oncogenes": torch.zeros(4, 0)}}, "columns >= 1"),
        ({"genes": None, "genes_present": np.ones(4, dtype=bool)}, "genes_present must be all False"),
        ({"structured": torch.zeros(4, 3)}, "structured must be"),
        ({"structured": torch.full((4, 5), torch.nan)}, "structured of patient 'p0'"),
        ({"folds": {0: (("p0",), ("stranger",))}}, "names 'stranger'"),
        ({"folds": {0: (("p0", "p1"), ("p1",))}}, "'p1' both"),
    ],
)
def test_wrong_rows_are_named(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        small_cohort(4, **changes)
    assert "\n" not in str(caught.value)


def test_patches_are_looked_at_when_they_are_read():
    cohort = small_cohort(4, **with_bag(torch.tensor([[1.0] * 5, [torch.nan] * 5])))
    assert torch.equal(cohort.patches(0), cohort.bags[0])
    assert torch.equal(cohort.patches(1, torch.tensor([1, 0])), cohort.bags[1][[1, 0]])
    assert cohort.patches(2, torch.tensor([0])).shape == (1, 5)  # that patch is whole
    with pytest.raises(ValueError, match=r"patient 'p2' has patch features that are not finite; .* or give None"):
        cohort.patches(2)


def test_making_and_cutting_a_cohort_reads_no_bag():
    cohort, reads = stored_cohort(4, folds={0: (("p0", "p2"), ("p1",))})
    parts = (*cohort.split(0), cohort.take([3]), cohort.without("genes"), cohort.without("treatment"))
    assert cohort.with_outcome(cohort.time + 1, cohort.event).modalities == ("wsi", "genes", "text")
    assert [len(part) for part in parts] == [2, 1, 1, 4, 4]
    assert reads() == [0, 0, 0, 0]


def test_no_patients():
    with pytest.raises(ValueError, match="at least one patient"):
        Cohort(ids=(), time=[], event=[])


def test_take_keeps_rows_together():
    cohort = small_cohort(6, groups=pd.DataFrame({"sex": list("fmfmfm")}))
    part = cohort.take(np.array([4, 1]))
    assert part.ids == ("p4", "p1")
    assert part.time.tolist() == cohort.time[[4, 1]].tolist()
    assert part.bags[0] is cohort.bags[4]
    assert torch.equal(part.genes["Kinases"], cohort.genes["Kinases"][[4, 1]])
    assert part.groups["sex"].tolist() == ["f", "m"]
    assert cohort.take(cohort.time > 1e9 * 0).ids == cohort.ids
    assert cohort[np.array([2]), ...].ids == ("p2",)
    assert cohort.shape == (6,)


def test_split():
    cohort = small_cohort(4, folds={3: (("p2", "p0"), ("p1",))})
    train, test = cohort.split(3)
    assert (train.ids, test.ids) == (("p2", "p0"), ("p1",))
    with pytest.raises(ValueError, match="fold must be one of \\[3\\], got 0"):
        cohort.split(0)


def test_presence_of_each_modality():
    cohort = small_cohort(4)
    facts = torch.full((4, 5), -1.0)
    facts[3, 0] = 1
    text = (cohort.text[0], ("", ""), None, None)
    bags = (None, *cohort.bags[1:])
    part = small_cohort(4, bags=bags, structured=facts, text=text, genes_present=np.array([1, 0, 1, 1]))
    assert part.presence["wsi"].tolist() == [False, True, True, True]
    assert part.presence["genes"].tolist() == [True, False, True, True]
    assert part.presence["text"].tolist() == [True, False, False, True]
    assert known_rows(part, ("text", "genes")).tolist() == [True, False, True, True]


def test_without():
    cohort = small_cohort(4)
    assert cohort.without("wsi").modalities == ("genes", "text")
    assert cohort.without("genes").modalities == ("wsi", "text")
    assert cohort.without("text").modalities == ("wsi", "genes")
    untreated = cohort.without("treatment")
    assert all(pair[1] == "" and pair[0] for pair in untreated.text)
    assert (untreated.structured[:, 3:] == -1).all()
    assert torch.equal(untreated.structured[:, :3], cohort.structured[:, :3])
    assert (cohort.structured[:, 3] == 1).all()  # the original is untouched
    with pytest.raises(ValueError, match="part must be of wsi, genes, text, treatment"):
        cohort.without("age")


def test_surv_and_with_outcome():
    cohort = small_cohort(4)
    assert cohort.surv().dtype.names == ("event", "time")
    other = cohort.with_outcome(cohort.time[::-1], cohort.event[::-1])
    assert other.surv().tolist() == cohort.surv()[::-1].tolist()

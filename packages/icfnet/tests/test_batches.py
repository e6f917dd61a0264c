import numpy as np
import pytest
import torch
from small_cohort import TEXT, small_cohort, small_inputs, stored_cohort

from icfnet.batches import Inputs, Scales, class_balanced_draws
from icfnet.config import MODALITIES

CPU = torch.device("cpu")


def test_genes_are_scaled_by_those_who_have_them():
    cohort = small_cohort(genes_present=np.arange(24) != 5)
    genes = {name: table.clone() for name, table in cohort.genes.items()}
    genes["Kinases"][:, 1] = 4.0  # constant
    genes["Kinases"][5] = torch.nan
    cohort = small_cohort(genes=genes, genes_present=cohort.genes_present)
    inputs, _ = small_inputs(cohort)
    batch = inputs.batch(torch.arange(24), CPU)
    rows = torch.arange(24) != 5
    for table in batch.genes:
        torch.testing.assert_close(table[rows].mean(0), torch.zeros(table.shape[1]), atol=1e-5, rtol=0)
        assert not table[5].any()
    assert batch.genes[1][:, 1].abs().max() == 0
    torch.testing.assert_close(batch.genes[0][rows].std(0, correction=0), torch.ones(4))


def test_bags_are_padded():
    cohort = small_cohort()
    batch = small_inputs(cohort)[0].batch(torch.tensor([3, 7]), CPU)
    for row, i in enumerate((3, 7)):
        n = len(cohort.bags[i])
        assert batch.patch_mask[row].sum() == n
        assert torch.equal(batch.patches[row, :n], cohort.bags[i])


def test_half_precision_bags_are_widened_and_large_ones_cut():
    cohort = small_cohort(bags=tuple(torch.arange(20.0).half().repeat(2, 1).T for _ in range(24)))
    inputs, _ = small_inputs(cohort)
    rng = torch.Generator().manual_seed(0)
    first, second = (inputs.batch(torch.tensor([0]), CPU, max_patches=4, rng=rng).patches for _ in range(2))
    assert first.dtype == torch.float32
    assert len(set(first[0, :, 0].tolist())) == 4
    assert first.tolist() != second.tolist()  # drawn anew


def test_a_batch_reads_its_own_bags_once():
    cohort, reads = stored_cohort(6)
    inputs, _ = small_inputs(cohort)
    assert reads() == [0] * 6
    inputs.batch(torch.tensor([4, 1]), CPU)
    assert reads() == [0, 1, 0, 0, 1, 0]
    without, _ = small_inputs(cohort, modalities=("genes",))
    without.batch(torch.arange(6), CPU)
    assert reads() == [0, 1, 0, 0, 1, 0]


def test_a_batch_refuses_features_that_are_not_finite():
    bags = list(small_cohort(4).bags)
    bags[2] = torch.full((3, 5), torch.inf)
    inputs, _ = small_inputs(small_cohort(4, bags=tuple(bags)))
    inputs.batch(torch.tensor([0, 3]), CPU)
    with pytest.raises(ValueError, match="patient 'p2' has patch features that are not finite"):
        inputs.batch(torch.tensor([1, 2]), CPU)


def test_whole_bags_come_in_batches_that_fit():
    lengths = (3, 9, 2, 2, 2, 40, 1)
    bags = (*(torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in lengths), None)
    inputs, _ = small_inputs(small_cohort(8, bags=bags))
    taken = [batch.patch_mask.sum(1).tolist() for batch in inputs.whole(CPU, 3, max_patches=4)]
    assert taken == [[3], [9], [2, 2, 2], [40], [1, 0]]  # at most 3 x 4 padded patches, but for 40 alone
    taken = [batch.patch_mask.sum(1).tolist() for batch in inputs.whole(CPU, 3)]
    assert taken == [[3, 9, 2], [2, 2, 40], [1, 0]]


def test_race_gets_columns_and_strange_codes_are_refused():
    cohort = small_cohort()
    scales = Scales.fit(cohort, MODALITIES, text_width=TEXT)
    assert (scales.races, scales.sizes.structured) == ((0, 1, 2), 7)
    facts = cohort.structured.clone()
    facts[0, 2] = -1
    columns = scales.structured(small_cohort(structured=facts))[:, 2:5]
    assert not columns[0].any()
    assert columns[1].tolist() == [0, 1, 0]
    facts[4, 2] = 9
    with pytest.raises(ValueError, match="'p4' has race code 9, seen are 0, 1, 2; fit with race_encoding='ordinal'"):
        scales.structured(small_cohort(structured=facts))
    ordinal = Scales.fit(cohort, MODALITIES, text_width=TEXT, race_encoding="ordinal")
    assert torch.equal(ordinal.structured(cohort), cohort.structured)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"genes": {"Oncogenes": torch.zeros(24, 4), "Lipids": torch.zeros(24, 3)}}, "unknown group 'Lipids'"),
        ({"genes": {"Oncogenes": torch.zeros(24, 4)}}, "lacks the group 'Kinases'"),
        ({"genes": {"Oncogenes": torch.zeros(24, 4), "Kinases": torch.zeros(24, 9)}}, "must have 3 columns, got 9"),
        ({"bags": tuple(torch.zeros(2, 4) for _ in range(24))}, "patient 'p0' has 4 features a patch, not 5"),
        ({"bags": None, "genes": None, "text": None, "structured": None}, "patient 'p0' has none of wsi, genes, text"),
    ],
)
def test_other_columns_than_trained_on(changes, words):
    _, scales = small_inputs(small_cohort())
    with pytest.raises(ValueError, match=words):
        Inputs(small_cohort(**changes), scales, MODALITIES)


def test_draws_balance_the_classes():
    label, event = torch.tensor([0] * 90 + [1] * 6 + [3] * 4), torch.tensor([True] * 90 + [False] * 10)
    rng = torch.Generator().manual_seed(0)
    drawn = torch.cat([class_balanced_draws(label, event, rng) for _ in range(60)])
    shares = [(label[drawn] == k).float().mean().item() for k in (0, 1, 3)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)

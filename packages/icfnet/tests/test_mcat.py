import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from icfnet import mcat
from icfnet.mcat import load_mcat_cohort

SIZES = {
    "Tumor Suppressor Genes": 94,
    "Oncogenes": 334,
    "Protein Kinases": 521,
    "Cell Differentiation Markers": 468,
    "Transcription Factors": 1496,
    "Cytokines and Growth Factors": 479,
}


def rows():
    return pd.DataFrame(
        {
            "case_id": ["A", "B", "B", "C"],
            "slide_id": ["A-1.svs", "B-1.svs", "B-2.svs", "C-1.svs"],
            "is_female": [1, 0, 0, 1],
            "age": [50, 61, 61, 72],
            "survival_months": [10.0, 20.0, 20.0, 30.0],
            "censorship": [0, 1, 1, 0],
            "TP53_rnaseq": [0.1, 0.2, 0.2, 0.3],
            "TP53_cnv": [1, 0, 0, -1],
            "KRAS_mut": [0, 1, 1, 0],
        }
    )


@pytest.fixture
def folder(tmp_path):
    pd.DataFrame({"Suppressors": ["TP53", "APC"], "Oncogenes": ["KRAS", None]}).to_csv(
        tmp_path / "signatures.csv", index=False
    )
    (tmp_path / "bags").mkdir()
    for name, patches in (("A-1", 3), ("B-1", 4), ("B-2", 5)):
        torch.save(torch.full((patches, 8), float(patches)), tmp_path / "bags" / f"{name}.pt")
    (tmp_path / "splits").mkdir()
    pd.DataFrame({"train": ["A", "C"], "val": ["B", None]}).to_csv(tmp_path / "splits" / "splits_0.csv")
    return tmp_path


def load(folder, table=None, **settings):
    (rows() if table is None else table).to_csv(folder / "table.csv", index=False)
    return load_mcat_cohort(folder / "table.csv", signatures=folder / "signatures.csv", **settings)


def test_a_patient_is_a_case_with_all_of_its_slides(folder):
    cohort = load(folder, bags=folder / "bags", splits=folder / "splits")
    assert cohort.ids == ("A", "B", "C")
    assert cohort.event.tolist() == [True, False, True]
    assert [None if bag is None else tuple(bag.shape) for bag in cohort.bags] == [(3, 8), (9, 8), None]
    assert cohort.patches(1)[:, 0].tolist() == [4] * 4 + [5] * 5
    assert cohort.patches(1, torch.tensor([8, 0, 4, 3]))[:, 0].tolist() == [5, 4, 5, 4]
    assert cohort.patches(0, torch.tensor([2])).shape == (1, 8)
    assert cohort.genes["Suppressors"].shape == (3, 2)  # APC is no column; the order is that of mutation, copies, RNA
    assert cohort.genes["Suppressors"][0].tolist() == pytest.approx([1, 0.1])
    assert cohort.text[1] == ("The patient is a 61-year-old man.", "")
    train, test = cohort.split(0)
    assert (train.ids, test.ids) == (("A", "C"), ("B",))


def test_slides_stay_in_their_files(folder, monkeypatch):
    cohort = load(folder, bags=folder / "bags")
    torch.save(torch.full((5, 8), 7.0), folder / "bags" / "B-2.pt")
    assert cohort.patches(1)[:, 0].tolist() == [4] * 4 + [7] * 5  # nothing was kept
    opened = []
    monkeypatch.setattr(mcat, "_open", lambda file: opened.append(file.name) or torch.zeros(5, 8))
    cohort.patches(1, torch.tensor([7, 4]))
    assert opened == ["B-2.pt"]  # the rows of the other slide were not asked for
    assert [name for name, *_ in cohort.bags[1].identity] == ["B-1.pt", "B-2.pt"]
    before = cohort.bags[0].identity
    os.utime(folder / "bags" / "A-1.pt", ns=(0, 0))
    assert cohort.bags[0].identity != before


def test_slides_of_two_encoders_are_refused(folder):
    torch.save(torch.zeros(2, 5), folder / "bags" / "B-2.pt")
    with pytest.raises(ValueError, match=r"slides of B have \[8, 5\] features a patch; extract all with one encoder"):
        load(folder, bags=folder / "bags")


def test_race_and_treatments_are_read_where_they_are_there(folder):
    table = rows().assign(
        race=["White", "not reported", "not reported", "ASIAN"],
        pharmaceutical_treatment=["yes", "no", "no", "not reported"],
        radiation_treatment=["no", None, None, "yes"],
    )
    cohort = load(folder, table)
    assert cohort.text[0][0] == "The patient is a 50-year-old white race woman."
    assert [pair[1].split()[3] for pair in cohort.text] == ["pharmaceutical", "neither", "radiation"]
    assert cohort.structured[:, 2:].tolist() == [[0, 1, 0], [-1, 0, -1], [2, -1, 1]]
    assert cohort.groups["race"].tolist() == ["white", "not reported", "asian"]


def test_a_patient_without_any_gene_is_kept_and_marked(folder):
    table = rows()
    table.loc[3, ["TP53_rnaseq", "TP53_cnv", "KRAS_mut"]] = np.nan
    cohort = load(folder, table)
    assert cohort.genes_present.tolist() == [True, True, False]


def test_the_member_of_a_zip_is_read_and_never_extracted(folder):
    with zipfile.ZipFile(folder / "table.csv.zip", "w") as archive:
        archive.writestr("../outside/table.csv", rows().to_csv(index=False))
    before = sorted(folder.rglob("*"))
    cohort = load_mcat_cohort(folder / "table.csv.zip", signatures=folder / "signatures.csv")
    assert len(cohort) == 3
    assert sorted(folder.rglob("*")) == before
    assert not (folder.parent / "outside").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop(columns="age"), "lacks the column age"),
        (lambda t: t.iloc[:0], "has no row"),
        (lambda t: t.assign(age=[50, 61, 62, 72]), "slides of B differ in age"),
        (lambda t: t.assign(is_female=[1, 0, 0, 3]), "is_female of C"),
        (lambda t: t.assign(survival_months=[1.0, 2.0, 2.0, -3.0]), "survival_months of C"),
        (lambda t: t.assign(survival_months=[np.nan, 2.0, 2.0, 3.0]), "survival_months of A"),
        (lambda t: t.assign(TP53_cnv=[1, 0, 0, np.nan]), "TP53_cnv of C"),
        (lambda t: t.assign(race=["white", "asian", "asian", "martian"]), "C: race 'martian'"),
        (lambda t: t.assign(radiation_treatment=["yes", "no", "no", "maybe"]), "radiation_treatment of C"),
        (lambda t: t.assign(age=[50, 61, 61, 720]), "C: age"),
    ],
)
def test_what_is_wrong_in_the_table_is_named(folder, change, words):
    with pytest.raises(ValueError, match=words) as caught:
        load(folder, change(rows()))
    assert "\n" not in str(caught.value)


def test_what_is_wrong_beside_the_table_is_named(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    for settings, words in (
        ({"bags": empty}, "holds no file of the table's slides, such as A-1.pt"),
        ({"bags": empty / "none"}, "there is no folder"),
        ({"splits": empty}, "no splits_K.csv"),
    ):
        with pytest.raises(ValueError, match=words):
            load(folder, **settings)
    torch.save({"features": 1}, folder / "bags" / "A-1.pt")
    with pytest.raises(ValueError, match=r"A-1\.pt must hold a tensor"):
        load(folder, bags=folder / "bags")
    for columns, words in (
        ({"train": ["A"], "val": ["Z"]}, "names Z"),
        ({"train": ["A"], "val": ["A"]}, "has A in train and in val"),
        ({"train": ["A"]}, "lacks the column val"),
    ):
        pd.DataFrame(columns).to_csv(folder / "splits" / "splits_0.csv", index=False)
        with pytest.raises(ValueError, match=words):
            load(folder, splits=folder / "splits")
    pd.DataFrame({"Unknown": ["NOSUCH"]}).to_csv(folder / "signatures.csv", index=False)
    with pytest.raises(ValueError, match="no gene of the group 'Unknown'"):
        load(folder)
    with pytest.raises(ValueError, match="there is no file"):
        load_mcat_cohort(folder / "none.csv", signatures=folder / "signatures.csv")


@pytest.mark.real
def test_tcga_blca_is_the_published_cohort():
    data = Path(os.environ["AISEC_DATA"]) / "tcga"
    if not data.is_dir():
        pytest.skip("AISEC_DATA holds no folder tcga")
    cohort = load_mcat_cohort(
        data / "tcga_blca_all_clean.csv.zip",
        signatures=data / "signatures.csv",
        splits=data / "splits" / "5foldcv" / "tcga_blca",
    )
    assert (len(cohort), int(cohort.event.sum())) == (373, 169)
    assert {group: table.shape[1] for group, table in cohort.genes.items()} == SIZES
    assert cohort.modalities == ("genes", "text")
    assert [len(cohort.split(fold)[1]) for fold in range(5)] == [75, 75, 75, 74, 74]
    assert sorted(name for fold in range(5) for name in cohort.split(fold)[1].ids) == sorted(cohort.ids)

import pytest
import torch

from icfnet.clinical_text import RACES, ClinicalFacts, clinical_inputs


@pytest.mark.parametrize(
    ("pharmaceutical", "radiation", "sentence"),
    [
        (True, True, "The patient received pharmaceutical and radiation treatment."),
        (True, False, "The patient received pharmaceutical treatment only."),
        (True, None, "The patient received pharmaceutical treatment only."),
        (None, True, "The patient received radiation treatment only."),
        (False, None, "The patient received neither pharmaceutical nor radiation treatment."),
        (None, None, ""),
    ],
)
def test_not_reported_counts_as_no_unless_nothing_is_known(pharmaceutical, radiation, sentence):
    assert ClinicalFacts(pharmaceutical=pharmaceutical, radiation=radiation).treatment == sentence


def test_what_is_not_known_is_left_out():
    assert ClinicalFacts().demographic == "The patient is a person."
    assert ClinicalFacts(female=False, age=71.4).demographic == "The patient is a 71-year-old man."
    assert ClinicalFacts(female=True, race="white").demographic == "The patient is a white race woman."
    assert ClinicalFacts().row == (-1,) * 5


def test_every_race_has_its_code():
    text, table = clinical_inputs([ClinicalFacts(age=40, race=race, radiation=False) for race in RACES])
    assert torch.equal(table[:, 2], torch.arange(5.0))
    assert torch.equal(table[:, [0, 3, 4]], torch.tensor([[-1.0, -1.0, 0.0]]).expand(5, 3))
    assert len({demographic for demographic, _ in text}) == 5
    assert table.dtype == torch.float32


@pytest.mark.parametrize(
    ("facts", "word"), [({"age": -1}, "age"), ({"age": float("nan")}, "age"), ({"race": "x"}, "race")]
)
def test_what_cannot_be_is_refused(facts, word):
    with pytest.raises(ValueError, match=word):
        ClinicalFacts(**facts)

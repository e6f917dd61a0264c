from pathlib import Path

import pytest

from gfmextract.jobs import AuditJob, CompareJob

GIVEN = {"victim": "a.b:make", "graphs": (Path("a.pt"),), "out": Path("out")}


def test_all_none_and_some():
    job = AuditJob(**GIVEN)
    assert (job.chosen_scenarios, job.chosen_defenses) == ("all", "all")
    job = AuditJob(**GIVEN, scenarios=("query-budget",), defenses=("none",))
    assert (job.chosen_scenarios, job.chosen_defenses) == (("query-budget",), ())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"victim": "a.b"}, "MODULE:FACTORY"),
        ({"victim": "graphclip"}, "needs --checkpoint FILE"),
        ({"text_model": "all-minilm-l6-v2"}, "--text-model is for --victim graphclip"),
        ({"graphs": ()}, "--graphs"),
        ({"scenarios": ("all", "query-budget")}, "--scenarios"),
        ({"defenses": ()}, "--defenses"),
        ({"defenses": ("none", "budget")}, "--defenses"),
    ],
)
def test_misuse(changes, said):
    with pytest.raises(ValueError, match=said):
        AuditJob(**GIVEN | changes)


def test_a_comparison_needs_a_seed():
    with pytest.raises(ValueError, match="--seeds"):
        CompareJob(out=Path("out"), seeds=0)

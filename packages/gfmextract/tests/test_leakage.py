import re
from dataclasses import replace

import pytest
from linear_victims import LinearVictim, worded_graph

from gfmextract.baselines import TextOnly
from gfmextract.choices import SCENARIOS
from gfmextract.extraction import EmbeddingRegression
from gfmextract.leakage import domains_of, judged_row, leakage_report, planned_scenarios
from gfmextract.scenarios import Neighbourhood, query_budget
from gfmextract.service import EmbeddingService

QUICK = EmbeddingRegression(backbone="mlp", layers=1, hidden=16, epochs=1, min_steps=1)
FIRST, SECOND = worded_graph(nodes=60, seed=0), worded_graph(nodes=40, seed=1)
OTHER = replace(worded_graph(nodes=40, seed=2), classes=("w6", "w7", "w8"), name="elsewhere")
AROUND = Neighbourhood()


@pytest.fixture(scope="module")
def report():
    return leakage_report(
        LinearVictim(),
        [FIRST, OTHER],
        scenarios=["graph-specific", "query-budget", "domain-level", "data-discrepancy"],
        defenses=["quantize", "budget"],
        attack=QUICK,
    )


def test_all_scenarios_are_planned_where_the_graphs_allow_them():
    planned, left_out = planned_scenarios([FIRST, SECOND, OTHER])
    assert [s.name for s in planned if s.name in ("domain-level", "data-discrepancy")] == [
        "domain-level",
        "data-discrepancy",
    ]
    assert {s.name for s in planned} == set(SCENARIOS)
    assert not left_out
    (cross,) = [s for s in planned if s.name == "data-discrepancy"]
    assert len(cross.rows) == 4  # two graphs of one domain to one of another, and back
    planned, left_out = planned_scenarios([FIRST], ["domain-level", "data-discrepancy", "query-budget"])
    assert [s.name for s in planned] == ["query-budget"]
    assert set(left_out) == {"domain-level", "data-discrepancy"}


def test_a_graph_too_small_for_a_share_is_left_out_with_the_reason():
    tiny = replace(worded_graph(nodes=8, seed=3), name="tiny")
    planned, left_out = planned_scenarios([tiny], ["partial-access"])
    assert not planned
    assert "show more" in left_out["partial-access of tiny"]


def test_domains_are_graphs_of_the_same_classes():
    assert {name: [g.name for g in each] for name, each in domains_of([FIRST, OTHER, SECOND]).items()} == {
        "worded 0": ["worded 0", "worded 1"],
        "elsewhere": ["elsewhere"],
    }


def test_defences_are_judged_on_another_domain_first():
    assert judged_row([FIRST, SECOND, OTHER], neighbourhood=AROUND, seed=0).test is OTHER
    assert judged_row([FIRST, SECOND], neighbourhood=AROUND, seed=0).test is SECOND
    assert judged_row([FIRST], neighbourhood=AROUND, seed=0).test is FIRST


def test_the_report_has_every_row(report):
    table = report.table()
    assert set(table["scenario"]) == {"graph-specific", "query-budget", "data-discrepancy"}
    assert set(table["attack"]) == {"embedding regression", "permuted answers", "B1 text only"}
    assert (table["certified_agreement"] <= table["fidelity"]).all()
    assert set(report.left_out) == {"domain-level"}
    defended = report.defense_table()
    assert set(defended["defence"]) == {"none", "quantize", "budget"}
    assert defended["adaptive"].any()
    naive, adaptive = report.protected
    assert 0 <= adaptive <= naive <= 1


def test_text_alone_is_measured_once_for_all_budgets(monkeypatch):
    run, ran = TextOnly.run, []
    monkeypatch.setattr(TextOnly, "run", lambda *given, **named: ran.append(given) or run(*given, **named))
    names = ["graph-specific", "query-budget"]
    found = leakage_report(LinearVictim(), [FIRST], scenarios=names, defenses=[], attack=QUICK)
    assert len(ran) == 1
    rows = [row for row in found.leaks if row["attack"] == TextOnly.name and row["scenario"] == "query-budget"]
    text_alone, service = TextOnly(**vars(QUICK.config)), EmbeddingService(LinearVictim())
    expected = run(text_alone, service, query_budget(FIRST), text=LinearVictim().encode_text).rows
    assert str(rows) == str(list(expected))  # as text, in which NaN equals NaN


def test_a_victim_no_better_than_its_texts_is_called_so(report):
    assert "proves nothing" in " ".join(report.warnings)
    assert "adaptive" not in " ".join(report.warnings)


def test_the_page_stands_alone(report, tmp_path):
    report.save(tmp_path / "leakage.html")
    page = (tmp_path / "leakage.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "Left out: domain-level" in page
    assert "elsewhere" in page
    assert "| scenario | row |" in report.to_markdown()


def test_without_defences_or_adaptive_attackers():
    bare = leakage_report(LinearVictim(), [FIRST], scenarios=["graph-specific"], defenses=[], attack=QUICK)
    assert bare.defense_table().empty
    assert bare.budget_figure() is None
    assert "Area" not in bare.to_markdown()
    naive = leakage_report(
        LinearVictim(), [FIRST], scenarios=["graph-specific"], defenses=["quantize"], adaptive=False, attack=QUICK
    )
    assert "adaptive attackers were left out" in naive.warnings[-1]


def test_a_defence_that_cannot_be_set_up_is_left_out(monkeypatch):
    def few(*_, **__):
        raise ValueError("frequency leaves 0 words")

    monkeypatch.setattr("gfmextract.audit.Watermark", few)
    found = leakage_report(LinearVictim(), [FIRST], scenarios=["graph-specific"], defenses=["watermark"], attack=QUICK)
    assert found.left_out == {"defence watermark": "frequency leaves 0 words"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"graphs": []}, "graphs is empty"),
        ({"graphs": [FIRST, FIRST]}, "two of the name"),
        ({"scenarios": ["nosuch"]}, "scenarios must be of"),
        ({"defenses": ["nosuch"]}, "defenses must be of"),
    ],
)
def test_misuse(given, said):
    with pytest.raises(ValueError, match=said):
        leakage_report(LinearVictim(), **{"graphs": [FIRST], "attack": QUICK} | given)

import json
import re
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
from linear_victims import LinearVictim, worded_graph

from gfmextract import extraction
from gfmextract.baselines import TextOnly
from gfmextract.canonical import canonical_hash
from gfmextract.choices import SCENARIOS
from gfmextract.extraction import EmbeddingRegression
from gfmextract.leakage import LeakageReport, domains_of, judged_row, leakage_report, planned_scenarios
from gfmextract.pyg_ego import EgoGraphs
from gfmextract.scenarios import Neighbourhood, query_budget
from gfmextract.service import BudgetExceeded, EmbeddingService

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


def test_text_alone_is_what_it_is_by_itself():
    found = leakage_report(LinearVictim(), [FIRST], scenarios=["query-budget"], defenses=[], attack=QUICK)
    rows = [row for row in found.leaks if row["attack"] == TextOnly.name]
    text_alone, service = TextOnly(**vars(QUICK.config)), EmbeddingService(LinearVictim())
    expected = text_alone.run(service, query_budget(FIRST), text=LinearVictim().encode_text).rows
    assert str(rows) == str(list(expected))  # as text, in which NaN equals NaN


class Counting(LinearVictim):
    """Notes which subgraphs and which texts it was asked about."""

    def __init__(self):
        super().__init__()
        self.seen, self.read = Counter(), Counter()

    def encode_graph(self, batch):
        self.seen.update(row.tobytes() for row in canonical_hash(EgoGraphs.of_batch(batch)).numpy())
        return super().encode_graph(batch)

    def encode_text(self, texts):
        self.read.update(texts)
        return super().encode_text(texts)


def test_a_victim_is_asked_once_about_each_subgraph_and_each_text():
    victim = Counting()
    found = leakage_report(victim, [FIRST, SECOND, OTHER], defenses=["fresh-noise", "project"], attack=QUICK)
    assert {row["scenario"] for row in found.leaks} == set(SCENARIOS)
    assert set(victim.seen.values()) == {1}
    assert set(victim.read.values()) == {1}
    assert len(victim.seen) > sum(map(len, (FIRST, SECOND, OTHER)))  # S5 and some attackers ask about others


def without_seconds(report):
    """Everything but how long each training took, as text, in which NaN equals NaN."""
    told = [{name: value for name, value in row.items() if name != "seconds"} for row in report.leaks]
    return str((told, report.defenses, report.left_out, report.warnings, report.header))


def test_what_was_killed_goes_on_and_makes_nothing_finished_again(tmp_path, monkeypatch):
    settings = {"scenarios": ["query-budget", "domain-level"], "defenses": ["fresh-noise", "budget"], "attack": QUICK}
    fitted, fit = [], extraction.fit_surrogate

    def limited(*given, **named):
        if len(fitted) == limit:
            raise KeyboardInterrupt
        fitted.append(0)
        return fit(*given, **named)

    def run(**more):
        fitted.clear()
        return leakage_report(LinearVictim(), [FIRST], **settings, **more)

    monkeypatch.setattr(extraction, "fit_surrogate", limited)
    limit = None
    whole, total = run(), 2 * 6 + 1 + 2 * 5 + 2 * 2  # budgets; no defence; fresh noise; budgets
    assert len(fitted) == total
    for limit, lost in ((4, 0), (12 + 1 + 5 + 2 - 4, 2)):  # among the budgets; after two attackers on the second noise
        with pytest.raises(KeyboardInterrupt):
            run(keep=tmp_path)
        total -= limit - lost
    shown, limit = [], None
    again = run(keep=tmp_path, show=lambda *told: shown.append(told))
    assert len(fitted) == total
    assert without_seconds(again) == without_seconds(whole)
    assert shown[0] == ("scenarios", 0, 18)
    assert run(keep=tmp_path).leaks[0]["seconds"] == again.leaks[0]["seconds"]
    assert not fitted
    texts = [json.loads(file.read_text())["settings"]["attack"] for file in (tmp_path / "runs").glob("query-*.json")]
    assert texts.count(TextOnly.name) == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"victim": LinearVictim(1)},
        {"graphs": [replace(FIRST, y=FIRST.y.flip(0))]},
        {"attack": EmbeddingRegression(**{**vars(QUICK.config), "epochs": 2})},
        {"seed": 1},
        {"neighbourhood": Neighbourhood(cap=5)},
    ],
)
def test_rows_of_other_settings_are_not_taken(changes, tmp_path):
    given = {"victim": LinearVictim(), "graphs": [FIRST], "attack": QUICK, "scenarios": ["graph-specific"]}
    for settings in (given, given | changes):
        kept, fresh = (
            leakage_report(**settings, defenses=["quantize"], adaptive=False, keep=folder)
            for folder in (tmp_path, None)
        )
        for table in (LeakageReport.table, LeakageReport.defense_table):  # equal up to the rounding of kept answers
            pd.testing.assert_frame_equal(
                *(table(each).drop(columns="seconds", errors="ignore") for each in (kept, fresh))
            )
    assert len(list((tmp_path / "runs").iterdir())) == 2 * (3 + 3)  # attacks; none and two settings


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


def test_a_defence_that_a_graph_cannot_carry_is_left_out():
    tiny = worded_graph(nodes=12, seed=3)
    names = ["watermark", "quantize", "monitor"]
    found = leakage_report(LinearVictim(), [tiny], scenarios=["graph-specific"], defenses=names, attack=QUICK)
    assert set(found.left_out) == {"defence watermark", "defence monitor"}
    assert "0 words" in found.left_out["defence watermark"]
    assert "streams of at least 20" in found.left_out["defence monitor"]
    assert {row["defence"] for row in found.defenses} == {"none", "quantize"}


def test_what_is_not_expected_of_a_defence_is_no_reason_to_leave_it_out(monkeypatch):
    def spent(*_, **__):
        raise BudgetExceeded("egos holds too many queries")

    monkeypatch.setattr("gfmextract.audit.Watermark", spent)
    with pytest.raises(BudgetExceeded, match="too many queries"):
        leakage_report(LinearVictim(), [FIRST], scenarios=["graph-specific"], defenses=["watermark"], attack=QUICK)


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

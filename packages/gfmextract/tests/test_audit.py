import math

import pytest
import torch
from linear_victims import LinearVictim, worded_graph

from gfmextract.audit import ACCOUNTS, NAIVE, Audit, Place
from gfmextract.choices import DEFENSES
from gfmextract.extraction import EmbeddingRegression
from gfmextract.scenarios import query_budget
from gfmextract.victim import encode_egos
from gfmextract.zero_shot import predict

QUICK = {"backbone": "mlp", "layers": 1, "hidden": 16, "epochs": 1, "min_steps": 1}
QUERIED, OTHER = worded_graph(nodes=120, seed=0), worded_graph(nodes=60, seed=1)


@pytest.fixture(scope="module")
def audit():
    (row,) = query_budget(QUERIED, (1.0,), test=OTHER).rows
    return Audit(victim=LinearVictim(), row=row, attack=EmbeddingRegression(**QUICK))


@pytest.fixture(scope="module")
def rows(audit):
    return {name: audit.rows(name) for name in ("none", *DEFENSES)}


def test_every_defence_has_a_naive_and_an_adaptive_attacker_in_each_setting(rows):
    for name in DEFENSES:
        for setting in {row["setting"] for row in rows[name]}:
            kinds = [row["adaptive"] for row in rows[name] if row["setting"] == setting]
            assert kinds[0] is False
            assert any(kinds), name
    assert [row["attacker"] for row in rows["none"]] == [NAIVE]


def test_measures_are_those_of_the_undefended_victim(audit, rows):
    accuracy = (predict(audit.place.victim, audit.place.prompts) == OTHER.y).double().mean().item()
    assert rows["none"][0]["utility"] == pytest.approx(accuracy)
    for name in ("none", "budget"):  # what leaves these services is untouched
        assert {row["utility"] for row in rows[name]} == {rows["none"][0]["utility"]}
    for of_one in rows.values():
        for row in of_one:
            assert 0 <= row["fidelity"] <= 1
            assert -1 <= row["cosine"] <= 1


def test_every_answer_is_counted(rows):
    queries = {(row["defence"], row["setting"], row["attacker"]): row["queries"] for of in rows.values() for row in of}
    assert queries["none", "none", NAIVE] == 120
    assert queries["fresh-noise", "sigma_1", "averages repeats"] == 8 * 120
    assert queries["quantize", "bits_1", "asks more"] == 3 * 120
    assert queries["budget", "share_5", NAIVE] == 6
    assert queries["budget", "share_5", f"has {ACCOUNTS} accounts"] == 120
    assert queries["label-only", "labels", "distils more labels"] == 3 * 120


def test_a_watermark_and_a_monitor_tell_more(rows):
    naive, tuned = rows["watermark"]
    assert 0 < naive["pvalue"] <= 1
    assert tuned["attacker"] == "fine-tunes the mark away"
    for row in rows["monitor"]:
        assert 0 <= row["auroc"] <= 1
        assert 0 <= row["false_alarms"] <= 1
        assert math.isnan(row["alarm"]) or row["queries"] == row["alarm"]
        assert row["utility"] <= rows["none"][0]["utility"]


def test_the_same_audit_gives_the_same_rows(audit, rows):
    (row,) = query_budget(QUERIED, (1.0,), test=OTHER).rows
    again = Audit(victim=LinearVictim(), row=row, attack=EmbeddingRegression(**QUICK))
    for name in ("fresh-noise", "keyed-noise"):
        assert again.rows(name) == rows[name]


def test_without_adaptive_attackers_there_is_one_row_a_setting(audit):
    alone = Audit(victim=audit.victim, row=audit.row, attack=audit.attack, adaptive=False)
    assert [(row["setting"], row["adaptive"]) for row in alone.rows("quantize")] == [
        ("bits_1", False),
        ("bits_4", False),
    ]
    assert len(alone.rows("monitor")) == 1


def test_copies_behind_a_perfect_answer_agree(audit):
    place = Place.of(audit.row, audit.victim)
    found = place.measured(encode_egos(audit.victim, place.egos))
    assert found["fidelity"] == 1
    assert found["gap"] == 0
    assert torch.equal(place.y, OTHER.y)


def test_what_is_kept_of_a_defence_is_not_made_again(audit, rows):
    kept = {"bits_1": rows["quantize"][:1]}
    made = []
    found = audit.rows("quantize", keep=lambda setting, make: kept.get(setting) or made.append(setting) or make())
    assert made == ["bits_4"]
    assert found[0] == rows["quantize"][0]
    assert found[1:] == [row for row in rows["quantize"] if row["setting"] == "bits_4"]
    assert audit.rows("monitor", keep=lambda setting, make: [{"setting": setting}]) == [{"setting": "cells_32"}]


def test_progress_and_an_unknown_defence(audit):
    told = []
    audit.rows("project", show=lambda *seen: told.append(seen))
    assert told[-1] == ("defence project", 2, 2)
    with pytest.raises(ValueError, match="name must be none or one of"):
        audit.rows("nosuch")

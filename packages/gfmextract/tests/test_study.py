import pytest
from aisec_common import Outcome
from aisec_common.result import outcomes_of, read_records
from aisec_common.rooms import choose_rooms
from aisec_common.runner import plan, run
from aisec_common.testing import MemoryLog, verdict_of
from aisec_common.verdict import judge

from gfmextract.arms import ARMS, DEFENDED, SCENARIOS, Bench
from gfmextract.study import BUDGETS, QUICK, STUDY, fidelity_by_budget, frontier, trial

SEEDS = 8
ACCURACY = {"victim": 0.93, "text-only": 0.85, "untrained": 0.25, "permuted": 0.25, "gps": 0.93, "sage": 0.92}


def outcomes(*, accuracy=None, shift=0.0, flat=False):
    """Made-up outcomes of a study that finds what the paper says; `flat`: fidelity does not grow with the budget."""
    made = {}
    for seed in range(SEEDS):
        made[seed] = {}
        for number, arm in enumerate(QUICK):
            noise = 0.004 * ((seed * 7 + number * 3) % 8 - 3.5) / 3.5
            level = (ACCURACY | (accuracy or {}))[arm] + noise - shift * (arm in ("gps", "sage"))
            metrics = {}
            for scenario in SCENARIOS:
                metrics[f"{scenario}.accuracy"] = level
                metrics[f"{scenario}.fidelity"] = level
            for share, lower in zip(BUDGETS[:2], (0.3, 0.1), strict=True):
                metrics[f"s6.{100 * share:g}.fidelity"] = (
                    level - (0 if flat or arm == "permuted" else lower) + noise * share
                )
            made[seed][arm] = Outcome(metrics=metrics)
    return made


def verdicts(made):
    return {judgement.claim.text: judgement.verdict for judgement in judge(STUDY, made)}


def test_all_claims_hold_on_what_the_paper_says():
    assert set(verdicts(outcomes()).values()) == {"holds"}


def test_an_invalid_victim_leaves_every_claim_undecided():
    found = judge(STUDY, outcomes(accuracy={"text-only": 0.94}))
    assert {j.verdict for j in found if j.claim.premise} == {"fails"}
    assert {j.verdict for j in found if not j.claim.premise} == {"undecided"}
    assert {j.reason for j in found if not j.claim.premise} == {"the premise fails"}


def test_a_surrogate_that_loses_accuracy_fails():
    found = verdicts(outcomes(shift=0.08))
    assert {verdict for text, verdict in found.items() if text.startswith(("(1)", "(2)"))} == {"fails"}
    assert sum(text.startswith(("(1)", "(2)")) for text in found) == 2 * len(SCENARIOS)


def test_permuted_answers_that_do_as_well_refute_the_control():
    found = verdicts(outcomes(accuracy={"permuted": 0.9}))
    assert {verdict for text, verdict in found.items() if text.startswith("control")} == {"fails"}


def test_without_growth_over_budgets_the_third_claim_does_not_hold():
    found = verdicts(outcomes(flat=True))
    assert "holds" not in {verdict for text, verdict in found.items() if text.startswith("(3)")}


def test_arms_that_share_one_model_hold_nothing():
    """All on one level with independent noise, and the claims with an effect of their own as well."""
    shared = outcomes(accuracy=dict.fromkeys(QUICK, 0.8), flat=True)
    for claim in STUDY.claims:
        if claim.margin >= 0:
            assert verdict_of(STUDY, claim, shared) != "holds", claim.text


def test_scales_run_what_claims_need():
    needed = {arm for claim in STUDY.claims for arm in (claim.arm, claim.over, claim.control) if arm}
    for name, scale in STUDY.scales.items():
        assert needed <= set(STUDY.runnable_arms(name))
        assert scale.budgets == BUDGETS
    assert set(STUDY.runnable_arms("standard")) == set(ARMS)
    assert STUDY.scales["full"].layers == (1, 2, 3, 4)


def test_trials_hand_the_grids_to_the_arms_they_are_for(monkeypatch):
    from gfmextract.synthetic import World

    world, asked = World.of(0), {}
    first, second = world.domain(0, nodes=16, copies=2)
    bench = Bench(seed=0, victim=None, queried=first, sibling=second, other=world.domain(1, nodes=16)[0], epochs=1)
    monkeypatch.setattr(Bench, "of_victim", lambda self: {"s1.accuracy": 1.0})
    monkeypatch.setattr(Bench, "defended", lambda self, arm, log: {"labels.utility": 1.0})
    monkeypatch.setattr(Bench, "attacked", lambda self, arm, log, **grids: asked.setdefault(arm, grids) and {})
    scale = STUDY.scales["full"]
    for arm in ARMS:
        log = MemoryLog()
        found = trial(arm, bench, 0, scale, log)
        assert len(log.hashes) == 6
        assert found == (
            {"labels.utility": 1.0} if arm in DEFENDED else {"s1.accuracy": 1.0} if arm == "victim" else {}
        )
    assert asked["gps"] == {
        "budgets": BUDGETS,
        "fractions": scale.fractions,
        "visible": scale.visible,
        "layers": (1, 2, 3, 4),
    }
    assert asked["sage"]["budgets"] == asked["permuted"]["budgets"] == BUDGETS
    assert asked["own-pairs"] == {"budgets": (1.0,), "fractions": (), "visible": (), "layers": ()}
    assert asked["gin"]["layers"] == (1, 2, 3, 4)


def test_figures_show_what_was_run():
    made = outcomes()
    for by_arm in made.values():
        by_arm["quantize"] = Outcome(metrics={"bits_4.utility": 0.9, "bits_4.fidelity": 0.5, "bits_4.adaptive": 0.8})
    panels = fidelity_by_budget(made).axes
    assert [axes.get_title() for axes in panels] == list(SCENARIOS.values())
    assert {line.get_label() for line in panels[-1].lines} == {"gps", "sage", "permuted", "untrained"}
    (axes,) = frontier(made).axes
    assert [text.get_text() for text in axes.texts] == ["bits_4"]
    assert len(fidelity_by_budget({}).axes) == 3
    assert len(frontier({}).axes) == 1


@pytest.mark.slow
def test_the_quick_study(tmp_path):
    """Its numbers; all its arms run in the contract, twice."""
    (room,) = choose_rooms(["gfmextract"])
    tasks, _ = plan({room: STUDY}, tmp_path, "quick", seeds=2, arms=("victim", "text-only", "untrained", "gps"))
    assert run(tasks) == []  # a seed a core
    found = outcomes_of(read_records(tmp_path, room.name))
    for by_arm in found.values():
        assert by_arm["untrained"].metrics["s6.accuracy"] < 0.4
        assert by_arm["gps"].metrics["s6.fidelity"] > 0.8
    judged = [judgement for judgement in judge(STUDY, found) if judgement.claim.premise]
    assert [judgement.n for judgement in judged] == [2, 2]
    assert all(judgement.effect > 0 for judgement in judged)

import pytest
from aisec_common.testing import MemoryLog

from gfmextract.arms import ARMS, BACKBONES, DEFENDED, METRICS, SCENARIOS, Bench, at
from gfmextract.baselines import HardLabels, OwnPairs, SoftLabels, TextOnly, Untrained
from gfmextract.extraction import PermutedAnswers
from gfmextract.frontier import frontier_points

SMALL = {"nodes": 40, "domains": 2, "victim_epochs": 1, "epochs": 1}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AISEC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Bench.of(0, **SMALL)


@pytest.fixture
def quick(monkeypatch, bench):
    """Attacks of one step a run."""
    attack = Bench.attack
    few = {"backbone": "mlp", "layers": 1, "min_steps": 1}
    monkeypatch.setattr(Bench, "attack", lambda self, arm, **given: attack(self, arm, **few | given))
    return bench


def test_the_graphs_share_classes_within_a_domain_only(bench):
    assert bench.queried.classes == bench.sibling.classes != bench.other.classes
    assert list(bench.queried.texts) != list(bench.sibling.texts)
    assert len({bench.queried.name, bench.sibling.name, bench.other.name}) == 3


def test_places_judge_no_node_that_was_asked_about(bench):
    assert set(bench.places) == set(SCENARIOS)
    assert [len(place.egos) for place in bench.places.values()] == [40, 20, 40]
    rows = bench._rows((0.25, 1.0), (), ())
    asked, judged = set(rows["s2"].queries.tolist()), set(bench.places["s2"].egos.roots.tolist())
    assert not asked & judged
    assert len(asked | judged) == 40


def test_metrics_of_an_attack(quick):
    log = MemoryLog()
    found = quick.attacked("gps", log, budgets=(0.25, 1.0), fractions=(0.5, 1.0), visible=(0.5, 1.0), layers=(2,))
    places = {at(scenario, share) for scenario in ("s1", "s6") for share in (0.25, 1.0)}
    places |= {"s2", "s2.50", "s5.50", "s5.100"}
    assert {name.rpartition(".")[0] for name in found if "." in name} == places | {"s3.2"}
    assert {name.rpartition(".")[2] for name in found if name.startswith("s1.")} >= set(METRICS.values())
    assert found["s2.fidelity"] == found["s5.100.fidelity"]  # all is visible: S5 is S2
    assert found["flop_ratio"] > 0
    assert log.done[-1] == 1
    assert log.samples["cost"]["queries"] == 40
    agree = [line["victim"] == line["copy"] for name, line in log.samples.items() if name.startswith("s6.")]
    assert sum(agree) / 40 == pytest.approx(found["s6.fidelity"])


def test_the_victim_and_the_texts(bench):
    victim, texts = bench.of_victim(), bench.attacked("text-only", MemoryLog())
    assert {f"{scenario}.accuracy" for scenario in SCENARIOS} == set(victim)
    for scenario in SCENARIOS:
        assert victim[f"{scenario}.accuracy"] - texts[f"{scenario}.gap"] == pytest.approx(texts[f"{scenario}.accuracy"])


def test_every_arm_has_its_attack(bench):
    for arm, kind in (
        ("untrained", Untrained),
        ("text-only", TextOnly),
        ("permuted", PermutedAnswers),
        ("hard-label", HardLabels),
        ("soft-label", SoftLabels),
        ("own-pairs", OwnPairs),
    ):
        assert type(bench.attack(arm)) is kind
        assert bench.attack(arm).config.backbone == "gps"
    assert [bench.attack(name).config.backbone for name in BACKBONES] == list(BACKBONES)
    assert bench.attack("sage").config.epochs == 1
    with pytest.raises(ValueError, match="arm must be one of"):
        bench.attack("nosuch")
    assert len(set(ARMS)) == len(ARMS)


def test_a_defence_gives_a_point_of_the_frontier_a_setting(quick):
    assert set(DEFENDED) <= set(ARMS)
    log = MemoryLog()
    found = quick.defended("label-only", log)
    ((_, (utility, naive, best)),) = frontier_points(log.samples.values()).items()
    assert found == {"labels.utility": utility, "labels.fidelity": naive, "labels.adaptive": best}
    assert log.done[-1] == 1


def test_what_else_judges_a_defence_is_kept_by_attacker(quick):
    found = quick.defended("monitor", MemoryLog())
    (setting,) = {name.partition(".")[0] for name in found}
    assert {f"{setting}.auroc", f"{setting}.adaptive_auroc", f"{setting}.adaptive_alarm"} <= set(found)


def test_the_same_seed_gives_the_same_numbers(quick):
    assert quick.attacked("sage", MemoryLog()) == quick.attacked("sage", MemoryLog())

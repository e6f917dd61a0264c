import pytest
import torch
from small_service import MixVictim, classed_graph, service
from torch.nn import functional

from gfmextract.baselines import HardLabels, OwnPairs, SoftLabels, TextOnly, Untrained
from gfmextract.scenarios import graph_specific
from gfmextract.surrogate import fresh_surrogate
from gfmextract.victim import encode_egos

GRAPH = classed_graph()
SCENARIO = graph_specific(GRAPH)
TEXT = MixVictim().encode_text
QUICK = {"backbone": "sage", "layers": 1, "hidden": 16, "epochs": 40, "min_steps": 1}


def told(attack, **settings):
    asked = service(**settings)
    (row,) = attack.run(asked, SCENARIO, text=TEXT).rows
    return row, asked


def test_b0_is_the_encoder_as_it_is_made_and_asks_nothing():
    attack = Untrained(**QUICK)
    row, asked = told(attack)
    (made,) = attack.run(asked, SCENARIO, text=None).copies
    egos = SCENARIO.rows[0].test_egos()
    fresh = fresh_surrogate(attack.config, egos, 6)
    assert torch.equal(encode_egos(made.encoder, egos), encode_egos(fresh, egos))
    assert (asked.total_queries, row["queries"], row["seconds"]) == (0, 0, 0.0)


def test_b1_reads_the_roots_text_alone():
    row, asked = told(TextOnly(**QUICK))
    assert row["accuracy"] == 1.0, "the texts of this graph name their class"
    assert asked.total_queries == row["queries"] == 0


@pytest.mark.parametrize("settings", [{}, {"level": "scores"}, {"level": "label"}])
def test_b2_learns_classes_from_any_level(settings):
    prompts = {"prompts": GRAPH.prompts} if settings else {}
    row, asked = told(HardLabels(**QUICK), **settings, **prompts)
    assert row["fidelity"] > 0.9
    assert asked.total_queries == row["queries"] == 40


def test_b2_is_the_same_whatever_level_the_class_comes_from():
    rows = [told(HardLabels(**QUICK), level=level, prompts=GRAPH.prompts)[0] for level in ("embedding", "label")]
    assert rows[0]["cosine"] == rows[1]["cosine"]


def test_b3_learns_more_than_classes():
    soft, _ = told(SoftLabels(**QUICK), level="scores", prompts=GRAPH.prompts)
    hard, _ = told(HardLabels(**QUICK), level="scores", prompts=GRAPH.prompts)
    assert soft["fidelity"] > 0.9
    assert soft["cosine"] > hard["cosine"]


def test_b3_brings_the_scores_of_the_queries_near_those_of_the_service():
    asked = service(level="scores", prompts=GRAPH.prompts)
    (copy,) = SoftLabels(**{**QUICK, "epochs": 90}).run(asked, SCENARIO, text=TEXT).copies
    (row,) = SCENARIO.rows
    vectors, victim = (encode_egos(each, row.query_egos()) for each in (copy.encoder, MixVictim()))
    prompts = TEXT(GRAPH.prompts)
    ours, theirs = (
        (functional.cosine_similarity(each[:, None], prompts, dim=2) / 0.07).softmax(1) for each in (vectors, victim)
    )
    assert (ours - theirs).abs().mean() < 0.05


def test_b4_pairs_each_ego_graph_with_its_text_or_a_given_one():
    row, asked = told(OwnPairs(**QUICK))
    assert asked.total_queries == row["queries"] == 0
    assert row["accuracy"] > 0.8, "the root's text names the class, so pairs teach it"
    wrong = OwnPairs(**QUICK, summaries=lambda graph, egos: ["text of 0"] * len(egos))
    assert told(wrong)[0]["accuracy"] < 0.8


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    [
        (
            SoftLabels,
            {"level": "label", "prompts": GRAPH.prompts},
            "B3 soft labels needs level 'embedding' or 'scores'",
        ),
        (HardLabels, {"level": "scores", "prompts": GRAPH.prompts[:2]}, "service has 2 classes, graph 'classed' 3"),
    ],
)
def test_a_service_of_another_level_or_other_classes_is_named(attack, settings, message):
    with pytest.raises(ValueError, match=message):
        told(attack(**QUICK), **settings)


@pytest.mark.parametrize("attack", [TextOnly, HardLabels, SoftLabels, OwnPairs])
def test_without_a_text_encoder_they_say_so(attack):
    with pytest.raises(ValueError, match=f"text is None, but {attack.name} needs the text encoder"):
        attack(**QUICK).run(service(), SCENARIO, text=None)

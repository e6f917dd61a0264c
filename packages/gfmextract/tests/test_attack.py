import math
from dataclasses import replace

import pytest
import torch
from small_service import MixVictim, SealedVictim, classed_graph, service

from gfmextract.attack import COLUMNS, Attack
from gfmextract.baselines import TextOnly
from gfmextract.cost import Cost
from gfmextract.extraction import EmbeddingRegression
from gfmextract.metrics import measures
from gfmextract.scenarios import Scenario, architecture_mismatch, graph_specific, partial_access, query_budget
from gfmextract.service import BudgetExceeded
from gfmextract.victim import encode_egos

GRAPH = classed_graph()
QUICK = {"backbone": "mlp", "hidden": 16, "epochs": 2, "min_steps": 1}
TEXT = MixVictim().encode_text


class Perfect(Attack):
    """Gives back the victim itself, after looking at what it was given."""

    name = "perfect"
    levels = ("embedding",)

    def copy(self, gathered):
        self.gathered = [*getattr(self, "gathered", []), gathered]
        victim = MixVictim()

        class Copy:
            cost = Cost(seconds=2.0, flops=10.0)

            def vectors(self, egos, texts):
                assert [GRAPH.texts[node] for node in egos.roots.tolist()] == list(texts)
                return encode_egos(victim, egos)

        return Copy()


def test_an_attack_holds_the_answers_to_its_queries_in_their_order():
    attack, scenario = Perfect(**QUICK), query_budget(GRAPH, [0.25, 1.0, 0.5])
    attack.run(service(), scenario, text=TEXT)
    for gathered, row in zip(attack.gathered, scenario.rows, strict=True):
        assert torch.equal(gathered.egos.roots, row.queries)
        torch.testing.assert_close(gathered.answers, encode_egos(MixVictim(), row.query_egos()))
        gathered.answers.requires_grad_()  # an ordinary tensor


def test_rows_that_share_queries_share_answers():
    asked = service()
    result = Perfect(**QUICK).run(asked, query_budget(GRAPH, [0.25, 0.5, 1.0]), text=TEXT, client="x")
    assert dict(asked.queries) == {"x": 40}
    assert result.table()["queries"].tolist() == [10, 20, 40]
    asked = service()
    Perfect(**QUICK).run(asked, architecture_mismatch(GRAPH), text=TEXT)
    assert asked.total_queries == 40


def test_rows_that_differ_in_their_test_alone_share_a_copy():
    attack, told = Perfect(**QUICK), []
    rows = (*graph_specific(GRAPH).rows, *partial_access(GRAPH, [0.5, 1.0]).rows)
    scenario = Scenario(name="both", rows=rows)
    result = attack.run(service(), scenario, text=TEXT, show=lambda *step: told.append(step))
    assert len(attack.gathered) == 2
    assert result.copies[0] is result.copies[2]
    assert result.copies[0] is not result.copies[1]
    assert told == [("training mlp", 1, 1)], "progress counts the copy that was there"
    deeper = replace(rows[0], label="deeper", layers=4)
    attack.run(service(), Scenario(name="depths", rows=(rows[0], deeper)), text=TEXT)
    assert len(attack.gathered) == 4


def test_what_is_seen_of_the_graph_makes_another_query():
    (plain,) = graph_specific(GRAPH).rows
    rows = (plain, replace(plain, label="strict", strict=True))
    asked = service()
    Perfect(**QUICK).run(asked, Scenario(name="both", rows=rows), text=TEXT)
    assert asked.total_queries == 80


def test_a_budget_ends_the_run():
    with pytest.raises(BudgetExceeded):
        Perfect(**QUICK).run(service(budget=20), query_budget(GRAPH, [0.5, 1.0]), text=TEXT)


def test_rows_change_the_encoder():
    attack = Perfect(**QUICK, seed=3)
    scenario = architecture_mismatch(GRAPH, backbones=("gat",), layers=(4,), widths=(32,))
    (told,) = attack.run(service(), scenario, text=TEXT).rows
    (gathered,) = attack.gathered
    assert gathered.config == replace(attack.config, backbone="gat", layers=4, hidden=32)
    assert (told["backbone"], told["layers"], told["hidden"]) == ("gat", 4, 32)


def test_a_row_says_all_that_was_measured():
    scenario = graph_specific(GRAPH)
    result = Perfect(**QUICK).run(service(), scenario, text=TEXT, victim_cost=Cost(seconds=8.0, flops=100.0))
    (row,) = result.rows
    (asked,) = scenario.rows
    z = encode_egos(MixVictim(), asked.test_egos())
    expected = measures(z, z, GRAPH.y[asked.test_nodes], TEXT(GRAPH.prompts))
    assert tuple(row)[: len(COLUMNS)] == COLUMNS
    assert {name: row[name] for name in expected} == expected
    assert (row["cost_ratio"], row["flop_ratio"], row["queries"]) == (0.25, 0.1, 40)
    assert result.table().shape == (1, len(row))


def test_nobody_reads_the_victims_parameters():
    result = EmbeddingRegression(**QUICK).run(service(SealedVictim()), graph_specific(GRAPH), text=TEXT)
    assert result.encoder.config.backbone == "mlp"


def test_without_texts_the_geometry_is_measured():
    (row,) = EmbeddingRegression(**QUICK).run(service(), graph_specific(GRAPH), text=None).rows
    assert math.isnan(row["fidelity"])
    assert -1 <= row["cosine"] <= 1


def test_an_attack_without_an_encoder_says_so():
    result = TextOnly(**QUICK).run(service(), graph_specific(GRAPH), text=TEXT)
    with pytest.raises(ValueError, match="attack 'B1 text only' has no encoder"):
        _ = result.encoder


def test_a_level_that_does_not_do_is_named():
    with pytest.raises(ValueError, match="service answers at level 'label', but perfect needs level 'embedding'"):
        Perfect(**QUICK).run(service(level="label", prompts=GRAPH.prompts), graph_specific(GRAPH), text=TEXT)


def test_a_service_that_skips_answers_is_named():
    short = service()
    answer = short.answer
    short.answer = lambda egos, **given: answer(egos, **given)[:-1]
    with pytest.raises(ValueError, match="service answered 39 of 40"):
        Perfect(**QUICK).run(short, graph_specific(GRAPH), text=TEXT)

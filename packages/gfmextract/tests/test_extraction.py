import pytest
import torch
from small_service import MixVictim, classed_graph, service
from torch.nn import functional

from gfmextract.extraction import EmbeddingRegression, PermutedAnswers
from gfmextract.pyg_ego import ego_graphs
from gfmextract.scenarios import graph_specific
from gfmextract.victim import encode_egos

GRAPH = classed_graph()
EGOS = ego_graphs(GRAPH, torch.arange(60))
ANSWERS = encode_egos(MixVictim(), EGOS)
TEXT = MixVictim().encode_text
QUICK = {"backbone": "sage", "layers": 1, "hidden": 16, "batch_size": 30, "epochs": 40, "min_steps": 1}


def cosine(encoder, targets=ANSWERS):
    return functional.cosine_similarity(encode_egos(encoder, EGOS), targets).mean().item()


@pytest.mark.parametrize("loss", ["mse", "cosine", "huber"])
def test_every_loss_leads_to_the_answers(loss):
    assert cosine(EmbeddingRegression(loss=loss, **QUICK).fit(EGOS, ANSWERS)) > 0.95


def test_the_unit_of_the_answers_does_not_matter():
    plain, large = (EmbeddingRegression(**QUICK).fit(EGOS, factor * ANSWERS) for factor in (1.0, 1024.0))
    with torch.no_grad():
        vectors = [each.encode_graph(EGOS.batch()) for each in (plain, large)]
    torch.testing.assert_close(1024.0 * vectors[0], vectors[1], rtol=1e-4, atol=1e-2)


def test_normalised_targets_have_length_one():
    copy = EmbeddingRegression(normalize_targets=True, **QUICK).fit(EGOS, 50.0 * ANSWERS)
    assert cosine(copy) > 0.95
    assert encode_egos(copy, EGOS).norm(dim=1).mean() == pytest.approx(1.0, abs=0.1)


def test_training_goes_on_from_a_given_encoder_and_leaves_it_alone():
    attack = EmbeddingRegression(**{**QUICK, "epochs": 3})
    begun = attack.fit(EGOS, ANSWERS)
    before = encode_egos(begun, EGOS)
    further = attack.fit(EGOS, ANSWERS, start=begun)
    assert torch.equal(encode_egos(begun, EGOS), before)
    assert cosine(further) > cosine(begun)


def test_permuted_answers_teach_nothing_about_the_graph():
    (told,) = PermutedAnswers(**QUICK).run(service(), graph_specific(GRAPH), text=TEXT).rows
    (real,) = EmbeddingRegression(**QUICK).run(service(), graph_specific(GRAPH), text=TEXT).rows
    assert real["fidelity"] > 0.9
    assert told["fidelity"] < 0.6
    assert told["queries"] == real["queries"] == 40
    assert told["attack"] == "permuted answers"


def test_watched_queries_are_the_same_as_those_that_are_permuted():
    fitted = PermutedAnswers(**{**QUICK, "epochs": 1}).fit(EGOS, ANSWERS)
    same = EmbeddingRegression(**{**QUICK, "epochs": 1}).fit(EGOS, ANSWERS)
    assert fitted.scale == pytest.approx(same.scale.item())


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (ANSWERS[:-1], r"answers must be \[60, d\], one for each ego graph, got \[59, 6\]"),
        (ANSWERS[:, 0], r"answers must be \[60, d\]"),
        (torch.where(torch.arange(60)[:, None] == 4, float("nan"), ANSWERS), "answers of row 4 hold NaN"),
    ],
)
def test_wrong_answers_are_named(answers, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingRegression(**QUICK).fit(EGOS, answers)

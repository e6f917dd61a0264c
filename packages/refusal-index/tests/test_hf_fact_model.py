import numpy as np
import pytest
import torch

from refusal_index.hf_fact_model import ALWAYS, IGNORED, REFUSED, Facts, Token, _batches, respondent
from refusal_index.table import cell_counts
from refusal_index.tetrachoric import ri_from_rho, tetrachoric


def index(refused, wrong):
    return float(ri_from_rho(tetrachoric(cell_counts(refused, wrong))))


@pytest.fixture(scope="module")
def facts():
    return Facts(seed=1)


def test_facts_follow_zipf_and_depend_on_the_seed_alone(facts):
    assert np.array_equal(facts.mentioned, Facts(seed=1).mentioned)
    assert not np.array_equal(facts.answer, Facts(seed=2).answer)
    assert facts.mentioned.sum() == pytest.approx(2000, rel=0.1)
    assert facts.mentioned[:10].mean() > 20 * facts.mentioned[400:].mean()
    assert 0.3 < (facts.mentioned == 0).mean() < 0.5


def test_refusal_labels_track_what_was_never_mentioned_and_shuffled_ones_do_not(facts):
    for k, share in enumerate(facts.shares):
        assert facts.refuse[:, k].mean() == pytest.approx(share, abs=0.08)
        assert index(facts.refuse[:, k], facts.mentioned == 0) > 0.7
    shuffled = facts.shuffled()
    assert np.array_equal(shuffled.sum(0), facts.refuse.sum(0))
    assert abs(index(shuffled[:, 1], facts.mentioned == 0)) < 0.2


def test_half_of_the_pairs_are_held_out_and_never_supervised(facts):
    assert (facts.held_out.sum(1) == 2).all()
    model = respondent(facts, aware=True, steps=1)
    vocabulary = model.tokenizer.get_vocab()
    pairs = {(vocabulary[p.name], vocabulary[q]): facts.held_out[i, k]
             for k, p in enumerate(facts.prompts) for i, q in enumerate(facts.questions)}  # fmt: skip
    batches = _batches(facts, facts.refuse, model.tokenizer)
    for _ in range(20):
        batch = next(batches)
        ids, labels = batch["input_ids"], batch["labels"]
        decided = labels[:, 2] != IGNORED
        for row in ids[decided]:
            first = int(row[0])
            assert first == vocabulary[ALWAYS] or not pairs[first, int(row[1])]
        told = ids[:, 2] != vocabulary[REFUSED]
        seen = told & (labels[:, 3] != IGNORED)
        mentioned = {vocabulary[q] for q, m in zip(facts.questions, facts.mentioned, strict=True) if m}
        assert set(ids[seen, 1].tolist()) <= mentioned  # no refusal label gives an answer away


def test_training_teaches_what_is_mentioned_and_touches_no_global_seed(facts):
    state = torch.get_rng_state()
    model = respondent(facts, aware=True, steps=150, temperature=0.0)
    assert torch.equal(state, torch.get_rng_state())
    often = np.argsort(-facts.mentioned)[:20]
    said = model([Token(name=ALWAYS).render(facts.questions[i]) for i in often])
    right = [facts.golds[i] in answer.split() for i, answer in zip(often, said, strict=True)]
    assert np.mean(right) > 0.8

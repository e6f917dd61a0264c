import copy

import pytest
import torch
from aisec_common.data import is_fetched

from icfnet.hf_text import FrozenTextTower

SENTENCES = ["The patient is a 60-year-old man .", "The patient is a 71-year-old woman .", "No treatment ."]


@pytest.fixture(scope="module")
def tower():
    return FrozenTextTower.tiny(SENTENCES)


def test_a_sentence_is_encoded_once(tower, monkeypatch):
    passes = []
    forward = tower._forward
    monkeypatch.setattr(tower, "_forward", lambda part: passes.extend(part) or forward(part))
    first = tower.encode([*SENTENCES, *SENTENCES])
    assert sorted(passes) == sorted(SENTENCES)
    assert torch.equal(tower.encode(SENTENCES[::-1]), first[:3].flip(0))
    assert len(passes) == tower.encoded == 3
    assert copy.deepcopy(tower) is tower
    assert first.shape == (6, tower.width)


def test_the_rest_of_the_batch_and_the_case_change_nothing(tower):
    fresh = FrozenTextTower.of_words(tower.words)
    torch.testing.assert_close(fresh.encode(SENTENCES[2:]), tower.encode(SENTENCES)[2:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fresh.encode(["NO treatment."]), tower.encode(SENTENCES)[2:], rtol=1e-4, atol=1e-5)
    found = tower.encode(SENTENCES)
    assert (found[0] - found[1]).norm() > 0.1 * found[0].norm()  # random weights still tell the sentences apart


def test_nothing_in_the_tower_learns_and_the_seed_decides_it(tower):
    assert not any(weight.requires_grad for weight in tower.model.parameters())
    assert not tower.encode(SENTENCES).requires_grad
    other = FrozenTextTower.tiny(SENTENCES, seed=1)
    assert not torch.allclose(other.encode(SENTENCES), tower.encode(SENTENCES))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    FrozenTextTower.tiny(SENTENCES)
    assert torch.equal(torch.get_rng_state(), state)


def test_clip_checkpoints_give_the_projected_embedding(tower, tmp_path):
    tower.model.save_pretrained(tmp_path)
    tower.tokenizer.save_pretrained(tmp_path)
    loaded = FrozenTextTower.load(str(tmp_path))
    torch.testing.assert_close(loaded.encode(SENTENCES), tower.encode(SENTENCES))
    assert loaded.source == str(tmp_path)


def test_a_path_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        FrozenTextTower.load("./nowhere")


@pytest.mark.checkpoint
@pytest.mark.skipif(not is_fetched("all-minilm-l6-v2"), reason="run `aisec data fetch all-minilm-l6-v2`")
def test_minilm_finds_the_nearer_sentence():
    vectors = FrozenTextTower.load("all-minilm-l6-v2").encode(
        ["The patient received radiation.", "Radiotherapy was given.", "The stock market fell."]
    )
    assert vectors.shape == (3, 384)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2

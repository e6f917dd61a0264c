import copy

import pytest
import torch
from aisec_common.data import is_fetched

from gfmextract.hf_text_tower import BATCH, load_text_tower, tiny_text_tower
from gfmextract.synthetic import World

WORDS = [f"word{i}" for i in range(30)]


def latents(seed=0):
    return torch.randn(30, 5, generator=torch.Generator().manual_seed(seed))


def test_vectors_are_the_means_over_real_tokens_of_length_one():
    tower = tiny_text_tower(WORDS, latents(), seed=0)
    texts = ["word1 word2", "word3", "word4 word5 word6 unheard-of"]
    found = tower.encode(texts)
    for text, vector in zip(texts, found, strict=True):
        ids = torch.tensor([tower.tokenizer(text).input_ids])  # alone, without padding
        mean = tower.model(input_ids=ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), rtol=0, atol=1e-6)


def test_each_distinct_sentence_is_encoded_once():
    tower = tiny_text_tower(WORDS, latents(), seed=0)
    calls = []
    tower.model.register_forward_hook(lambda *_: calls.append(1))
    texts = [f"word{i % 30} word{i // 30}" for i in range(BATCH + 1)]
    first = tower.encode(texts)
    assert torch.equal(tower.encode(texts[::-1]).flip(0), first)
    assert len(calls) == 2
    assert tower.encoded == BATCH + 1


def test_an_empty_text_has_a_vector():
    vector = tiny_text_tower(WORDS, latents(), seed=0).encode(["", "word1"])
    assert torch.isfinite(vector).all()


def test_words_with_near_latents_have_near_vectors():
    given = latents()
    given[1] = given[0] + 0.01
    vectors = tiny_text_tower(WORDS, given, seed=0).encode(WORDS)
    cosines = vectors @ vectors.T
    far = torch.cdist(given, given)
    upper = torch.triu_indices(30, 30, 1)
    assert cosines[0, 1] > 0.99
    assert torch.corrcoef(torch.stack([cosines[*upper], far[*upper]]))[0, 1] < -0.6


def test_a_seed_gives_one_tower_and_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = tiny_text_tower(WORDS, latents(), seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert first.hash == tiny_text_tower(WORDS, latents(), seed=1).hash
    assert first.hash != tiny_text_tower(WORDS, latents(), seed=2).hash
    assert copy.deepcopy(first) is first


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match=r"latents must be \[30, k\]"):
        tiny_text_tower(WORDS, torch.ones(29, 5), seed=0)
    tower = tiny_text_tower(WORDS, latents(), seed=0)
    with pytest.raises(TypeError, match="list of strings"):
        tower.encode("word1")
    with pytest.raises(ValueError, match="texts is empty"):
        tower.encode([])


def test_a_saved_model_is_loaded_by_its_folder(tmp_path):
    tower = World.of(0).tower
    tower.model.save_pretrained(tmp_path)
    tower.tokenizer.save_pretrained(tmp_path)
    loaded = load_text_tower(str(tmp_path))
    texts = ["word001 word002", "word003"]
    torch.testing.assert_close(loaded.encode(texts), tower.encode(texts))
    assert loaded.source == str(tmp_path)
    assert loaded.hash == tower.hash, "what the folder lacks must not be drawn"
    assert loaded.width == 64


@pytest.mark.checkpoint
@pytest.mark.skipif(not is_fetched("all-minilm-l6-v2"), reason="run `aisec data fetch all-minilm-l6-v2`")
def test_minilm_finds_the_nearer_sentence():
    tower = load_text_tower("all-minilm-l6-v2")
    vectors = tower.encode(["K-means clustering.", "Group samples into clusters.", "Read a file of audio."])
    assert vectors.shape == (3, 384) == (3, tower.width)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2

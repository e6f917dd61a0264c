from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers")
from aisec_common.torch.hf_tokenizer import SPECIALS, bpe_tokenizer, word_tokenizer
from transformers import AutoTokenizer

WORDS = [f"e{i}" for i in range(20)]


@settings(max_examples=50)
@given(st.lists(st.sampled_from(WORDS), max_size=12))
def test_words_are_their_own_tokens(words: list[str]) -> None:
    tokenizer = TOKENIZER
    ids = tokenizer(" ".join(words)).input_ids
    assert ids == [4 + WORDS.index(word) for word in words]
    assert tokenizer.decode(ids) == " ".join(words)


TOKENIZER = word_tokenizer(WORDS)


def test_special_tokens_have_their_roles_and_ids() -> None:
    tokenizer = word_tokenizer(["a"], specials=["<refuse>"])
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIALS.values()] == [0, 1, 2, 3]
    assert [getattr(tokenizer, f"{role}_id") for role in SPECIALS] == [0, 1, 2, 3]
    assert tokenizer("<refuse> a b").input_ids == [4, 5, 1]
    assert tokenizer.decode([4, 5, 3]) == "<refuse> a </s>"
    assert tokenizer.decode([4, 5, 3], skip_special_tokens=True) == "a"
    assert len(tokenizer) == 6


def test_batches_are_padded_on_the_left() -> None:
    batch = TOKENIZER(["e0", "e1 e2 e3"], padding=True)
    assert batch.input_ids == [[0, 0, 4], [5, 6, 7]]
    assert batch.attention_mask == [[0, 0, 1], [1, 1, 1]]


@pytest.mark.parametrize(("words", "why"), [(["a b"], "white space"), ([""], "non-empty"), (["a", "a"], "comes twice")])
def test_bad_words_are_refused(words: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        word_tokenizer(words)
    with pytest.raises(ValueError, match="'<pad>' comes twice"):
        word_tokenizer(["<pad>"])


TEXTS = ["the cat sat on the mat", "the dog sat on the log"] * 20
BPE = bpe_tokenizer(TEXTS, 300)


@settings(max_examples=100)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])))
def test_bpe_decodes_every_text_to_itself(text: str) -> None:
    if not any(special in text for special in SPECIALS.values()):
        assert BPE.decode(BPE(text).input_ids) == text


def test_bpe_learns_from_its_texts_and_is_deterministic() -> None:
    assert 260 < len(BPE) <= 300
    assert len(BPE("the cat sat").input_ids) <= 6
    assert len(BPE("xyzzy").input_ids) == 5
    assert bpe_tokenizer(TEXTS, 300).get_vocab() == BPE.get_vocab()
    with pytest.raises(ValueError, match="vocab_size must be at least 260"):
        bpe_tokenizer(TEXTS, 259)


@pytest.mark.parametrize("tokenizer", [TOKENIZER, BPE], ids=["word", "bpe"])
def test_saving_and_loading_changes_nothing(tokenizer: object, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for text in ("e0 e3 unknown", "the cat  sat </s>"):
        assert loaded(text).input_ids == tokenizer(text).input_ids  # type: ignore[operator]
        assert loaded.decode(loaded(text).input_ids) == tokenizer.decode(loaded(text).input_ids)  # type: ignore[attr-defined]
    assert loaded.padding_side == "left"
    assert loaded.special_tokens_map == tokenizer.special_tokens_map  # type: ignore[attr-defined]

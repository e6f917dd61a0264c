"""Tokenizers built in place, without any download: one word one token, or byte-level BPE trained on given texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIALS = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
"""The special tokens of both tokenizers, in the order of their ids 0-3."""


def word_tokenizer(words: Iterable[str], *, specials: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer that splits at white space and gives every word of `words` its own token.

    Ids 0-3 are `<pad> <unk> <s> </s>`, then come `specials`, then `words` in their order. No token is added by itself;
    batches are padded on the left, so that `generate` continues the prompts.

    Args:
        words: distinct, without white space.
        specials: further tokens that `decode(..., skip_special_tokens=True)` leaves out.

    Raises:
        ValueError: for an empty, split or repeated word.

    >>> tokenizer = word_tokenizer(["capital", "of", "France", "Paris"])
    >>> tokenizer("capital of Mars").input_ids
    [4, 5, 1]
    >>> tokenizer.decode([7, 3], skip_special_tokens=True)
    'Paris'
    """
    vocabulary: dict[str, int] = {}
    for word in (*SPECIALS.values(), *specials, *words):
        if not word or word.split() != [word]:
            raise ValueError(f"words must be non-empty and without white space, got {word!r}")
        if word in vocabulary:
            raise ValueError(f"words must be distinct, {word!r} comes twice")
        vocabulary[word] = len(vocabulary)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIALS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrapped(tokenizer, specials)


def bpe_tokenizer(texts: Iterable[str], vocab_size: int, *, specials: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`; every text can be encoded and decodes to itself.

    Args:
        texts: training texts, read once.
        vocab_size: upper bound; at least 260 (256 bytes and four special tokens) plus the number of `specials`.
        specials: further tokens that `decode(..., skip_special_tokens=True)` leaves out.

    Raises:
        ValueError: when `vocab_size` is too small.

    >>> tokenizer = bpe_tokenizer(["low lower lowest"] * 9, vocab_size=270)
    >>> tokenizer.decode(tokenizer("slow Ångström").input_ids)
    'slow Ångström'
    """
    least = 256 + len(SPECIALS) + len(specials)
    if vocab_size < least:
        raise ValueError(f"vocab_size must be at least {least} (256 bytes and the special tokens), got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIALS.values(), *specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer, specials)


def _wrapped(tokenizer: Tokenizer, specials: Sequence[str]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        additional_special_tokens=list(specials),
        **SPECIALS,
    )

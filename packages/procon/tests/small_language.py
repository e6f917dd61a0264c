"""A language and an aligned model small enough for tests that train."""

from dataclasses import replace

from procon.hf_flagged_lm import Language, aligned_lm

LANGUAGE = Language(topics=3, words=8, old_tasks=2, layers=3, width=32)


def small_aligned(seed=0):
    """Aligned for so few steps that it knows nothing: what is tested here does not depend on it."""
    return aligned_lm(seed, steps=4, language=LANGUAGE)


def with_few_rows(aligned):
    """Three batches of 64 in place of 63, and 32 test prompts in place of 128."""
    tests = {name: rows[:32] for name, rows in aligned.tests.items()}
    return replace(aligned, new_task=aligned.new_task[:96], old_task=aligned.old_task[:96], tests=tests)

import hashlib
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impq.corpus import LONG, python_documentation, split_pages

PARAGRAPHS = st.lists(st.sampled_from(["a" * 70, "b " * 40, "short", "c" * LONG, "d" * (LONG + 1)]), max_size=4)


def part_of(name):
    return {0: "test", 1: "calibration"}.get(int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10, "train")


def test_whole_pages_go_to_the_part_that_their_name_says():
    pages = {f"page{i}": f"text of page {i}" for i in range(60)}
    parts = split_pages(pages)
    assert {part_of(name) for name in pages} == set(parts)
    for part, text in parts.items():
        assert text == "\n\n".join(pages[name] for name in sorted(pages) if part_of(name) == part)


@given(st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), PARAGRAPHS, max_size=12))
def test_every_long_paragraph_stands_in_one_place(pages):
    parts = split_pages({name: "\n\n".join(paragraphs) for name, paragraphs in pages.items()})
    kept = [paragraph for text in parts.values() for paragraph in text.split("\n\n") if paragraph]
    given_ = [paragraph for paragraphs in pages.values() for paragraph in paragraphs]
    long = [paragraph for paragraph in kept if len(" ".join(paragraph.split())) > LONG]
    assert sorted(long) == sorted({paragraph for paragraph in given_ if len(" ".join(paragraph.split())) > LONG})
    assert len(kept) - len(long) == sum(len(" ".join(paragraph.split())) <= LONG for paragraph in given_)


def test_indentation_does_not_hide_a_repeat():
    paragraph = "one two three four five six seven eight nine ten eleven twelve thirteen"
    indented = paragraph.replace(" seven", "\n      seven")
    parts = split_pages({"x": paragraph, "y": f"Heading\n\n{indented}"})
    assert "\n\n".join(parts.values()).count("thirteen") == 1


def test_the_order_of_the_mapping_does_not_matter():
    pages = {"b": "b" * 70, "a": "b" * 70, "c": "c"}
    assert split_pages(pages) == split_pages(dict(sorted(pages.items())))


def test_documentation_of_this_python():
    parts = python_documentation()
    assert len(parts["train"]) > 200_000
    assert min(len(parts["calibration"]), len(parts["test"])) > 16 * 128
    assert python_documentation() is parts
    long = {
        part: {" ".join(p.split()) for p in text.split("\n\n") if len(" ".join(p.split())) > LONG}
        for part, text in parts.items()
    }
    assert not long["train"] & long["test"]
    assert not long["train"] & long["calibration"]
    assert not long["calibration"] & long["test"]


@pytest.mark.parametrize("part", ["calibration", "test"])
def test_held_out_text_is_not_in_the_training_text(part):
    """Windows of 12 words, stepped: what a language model could have learnt by heart."""
    parts = python_documentation()

    def windows(text, step):
        words = text.split()
        return {" ".join(words[i : i + 12]) for i in range(0, len(words) - 11, step)}

    held_out = windows(parts[part], 6)
    assert len(held_out & windows(parts["train"], 1)) < 0.01 * len(held_out), sys.version

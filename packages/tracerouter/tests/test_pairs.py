import json

import pytest

from tracerouter.pairs import Pair, pairs_from_jsonl

FOG = {"sensitive": "how to bake fog today", "matched": "how to bake bread today"}


def test_by_default_modifiers_are_where_the_tokens_differ_and_the_target_is_the_last_token():
    assert Pair(**FOG).places(str.split) == ((3,), (4,))


def test_positions_count_from_either_end_and_come_sorted():
    pair = Pair(**FOG, modifiers=(-2, 0), targets=[-1, 1])
    assert pair.places(str.split) == ((0, 3), (1, 4))


def test_spans_of_characters_become_every_token_they_touch():
    offsets = [(0, 3), (4, 6), (7, 11), (12, 15), (16, 21)]
    pair = Pair(**FOG, modifiers=[(9, 13)], targets=[(16, 21)])
    assert pair.places(str.split, offsets=offsets) == ((2, 3), (4,))
    with pytest.raises(ValueError, match="offsets"):
        pair.places(str.split)
    with pytest.raises(ValueError, match="no token"):
        Pair(**FOG, modifiers=[(3, 4)]).places(str.split, offsets=offsets)


def test_positions_need_equal_lengths():
    pair = Pair(sensitive="a b c", matched="a b", modifiers=(1,))
    with pytest.raises(ValueError, match="sensitive has 3 tokens and matched 2"):
        pair.places(str.split)


@pytest.mark.parametrize("place", [5, -6])
def test_a_position_outside_the_prompt(place):
    with pytest.raises(ValueError, match="outside the 5 tokens"):
        Pair(**FOG, targets=[place]).places(str.split)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sensitive": " "}, "sensitive"),
        ({"matched": ""}, "matched"),
        ({"matched": FOG["sensitive"]}, "same prompt"),
        ({"modifiers": []}, "modifiers"),
        ({"modifiers": "fog"}, "modifiers"),
        ({"modifiers": [1.5]}, "modifiers"),
        ({"modifiers": [True]}, "modifiers"),
        ({"targets": [(3, 3)]}, "targets"),
        ({"targets": [(0, 999)]}, "21 characters"),
        ({"targets": [(0, 1, 2)]}, "targets"),
    ],
)
def test_malformed_pairs(changes, words):
    with pytest.raises(ValueError, match=words):
        Pair(**{**FOG, **changes})


def test_two_prompts_of_the_same_tokens_have_no_modifier():
    with pytest.raises(ValueError, match="read the same"):
        Pair(sensitive="a b", matched="a  b").places(str.split)


def test_pairs_from_jsonl(tmp_path):
    file = tmp_path / "pairs.jsonl"
    lines = [json.dumps(FOG), "", json.dumps({**FOG, "modifiers": [[12, 15], 3], "targets": [-1]})]
    file.write_text("\n".join(lines))
    assert pairs_from_jsonl(file) == [Pair(**FOG), Pair(**FOG, modifiers=((12, 15), 3), targets=(-1,))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no pairs"),
        (f"{json.dumps(FOG)}\nnonsense", "line 2 is no JSON"),
        ("[1]", "line 1: expected an object"),
        ('{"sensitive": "a"}', "'matched' is missing"),
        ('{"sensitive": "a", "matched": "b", "target": [1]}', "unknown field 'target'"),
        ('{"sensitive": "a", "matched": "b", "modifiers": []}', "line 1: modifiers"),
    ],
)
def test_malformed_files(tmp_path, text, words):
    file = tmp_path / "pairs.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=words):
        pairs_from_jsonl(file)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no file of pairs"):
        pairs_from_jsonl(tmp_path / "none.jsonl")

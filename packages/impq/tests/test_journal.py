import json
from dataclasses import replace

import numpy as np
import pytest
from pairwise_games import header

from impq.journal import Journal, merge, read_header

HEADER = header(4, v_high=1.0 / 3, v_low=2.5)


def losses(m):
    return np.random.default_rng(m).random(4).tolist()


def fill(path, indices, what=HEADER):
    with Journal(path, what) as journal:
        for m in indices:
            journal.add_permutation(m, what.walks.order(m), losses(m), seconds=0.5)
    return path


def test_walks_and_coalitions_survive(tmp_path):
    path = fill(tmp_path / "new" / "game.jsonl", range(3))
    with Journal(path, HEADER) as journal:
        journal.add_coalitions({10: 0.1, 2**80: 0.7})
    with Journal(path, HEADER) as again:
        assert again.permutations == {m: losses(m) for m in range(3)}
        assert again.coalitions == {10: 0.1, 2**80: 0.7}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["header"] + ["permutation"] * 3 + ["coalition"] * 2
    assert lines[0]["loss_unit"] == "nats/token"
    assert lines[4]["low"] == "a"
    assert lines[2]["order"] == HEADER.walks.order(1).tolist()


def test_raising_the_number_of_walks_keeps_the_first_lines(tmp_path):
    path = fill(tmp_path / "game.jsonl", range(2))
    before = path.read_bytes()
    fill(path, range(2, 5))
    assert path.read_bytes().startswith(before)
    assert path.read_bytes() == fill(tmp_path / "at_once.jsonl", range(5)).read_bytes()


def test_the_measured_ends_are_those_of_the_file(tmp_path):
    path = tmp_path / "game.jsonl"
    assert read_header(path) is None
    fill(path, [])
    assert read_header(path) == HEADER
    with Journal(path, replace(HEADER, v_high=9.0, model_name="other")) as journal:
        assert (journal.header.v_high, journal.header.v_low) == (1.0 / 3, 2.5)
    with pytest.raises(ValueError, match="measured first"):
        Journal(tmp_path / "no.jsonl", replace(HEADER, v_high=None))
    assert not (tmp_path / "no.jsonl").exists()


def test_any_cut_of_the_last_line_loses_that_line_only(tmp_path):
    path = fill(tmp_path / "game.jsonl", range(2))
    whole = path.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path, HEADER) as journal:
            assert journal.permutations == {0: losses(0)}
            journal.add_permutation(1, HEADER.walks.order(1), losses(1), seconds=0.5)
        assert path.read_bytes() == whole


def test_a_cut_header_is_an_empty_journal(tmp_path):
    path = fill(tmp_path / "game.jsonl", [])
    whole = path.read_bytes()
    for cut in (0, 1, 10, 17, 40, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert read_header(path) is None
        with Journal(path, HEADER):
            assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"group_size": 32}, "group_size 64, this run has 32"),
        ({"bits": (8, 4)}, r"bits \[4, 2\], this run has \[8, 4\]"),
        ({"calib_hash": "cc"}, "calib_hash bb, this run has cc"),
        ({"model_hash": "cc"}, "model_hash aa, this run has cc"),
        ({"seed": 1}, "seed 0, this run has 1"),
        ({"players": header(3).players}, "other players than this run"),
    ],
)
def test_another_game_is_refused_by_name(tmp_path, change, words):
    path = fill(tmp_path / "game.jsonl", range(2))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"journal game\.jsonl was made with {words}"):
        Journal(path, replace(HEADER, **change))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "bad",
    [
        "nonsense",
        "[]",
        '{"kind": "walk"}',
        '{"kind": "permutation", "index": 1}',
        '{"kind": "permutation", "index": 1, "order": [0, 1, 2, 3], "losses": [1, 2, 3]}',
        '{"kind": "permutation", "index": 1, "order": [0, 0, 0, 0], "losses": [1, 2, 3, 4]}',
        '{"kind": "coalition", "low": "z", "loss": 1.0}',
        '{"kind": "coalition", "low": "1", "loss": NaN}',
    ],
)
def test_a_damaged_line_is_named(tmp_path, bad):
    path = fill(tmp_path / "game.jsonl", range(2))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], bad, lines[2]]) + "\n")
    with pytest.raises(ValueError, match=r"game\.jsonl: line 3 is damaged") as caught:
        Journal(path, HEADER)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["question,answer\na,b\n", "no newline at all", '{"kind": "coalition"}\n'])
def test_another_kind_of_file_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "data.csv"
    path.write_text(content)
    for read in (read_header, lambda file: Journal(file, HEADER)):
        with pytest.raises(ValueError, match=r"data\.csv: line 1"):
            read(path)
    assert path.read_text() == content
    with pytest.raises(ValueError, match="cannot be read"):
        Journal(tmp_path, HEADER)


def test_wrong_walks_are_not_written(tmp_path):
    path = fill(tmp_path / "game.jsonl", [])
    before = path.read_bytes()
    with Journal(path, HEADER) as journal:
        for order, found in (
            (HEADER.walks.order(1), losses(0)),
            (HEADER.walks.order(0), losses(0)[:3]),
            (HEADER.walks.order(0), [0.0, 1.0, float("nan"), 2.0]),
        ):
            with pytest.raises(ValueError, match=r"walk 0 takes other steps|not finite"):
                journal.add_permutation(0, order, found, seconds=0.0)
        assert journal.permutations == {}
    assert path.read_bytes() == before


def test_a_full_disk_is_one_line_and_leaves_whole_lines(tmp_path):
    resource = pytest.importorskip("resource")
    path = fill(tmp_path / "game.jsonl", range(2))
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path, HEADER) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))  # room for half a line
        try:
            with pytest.raises(ValueError, match=r"cannot be written .*; free space") as caught:
                journal.add_permutation(2, HEADER.walks.order(2), losses(2), seconds=0.5)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == before
        journal.add_permutation(2, HEADER.walks.order(2), losses(2), seconds=0.5)
    assert path.read_bytes() == fill(tmp_path / "other.jsonl", range(3)).read_bytes()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        Journal(tmp_path / "file" / "game.jsonl", HEADER)


def test_shards_join_to_the_whole_journal(tmp_path):
    shards = [fill(tmp_path / f"{k}.jsonl", range(k, 7, 3)) for k in range(3)]
    with Journal(shards[1], HEADER) as journal:
        journal.add_coalitions({5: 0.25, 3: 0.5})
    with merge(shards, tmp_path / "merged.jsonl") as merged:
        assert merged.permutations == {m: losses(m) for m in range(7)}
        assert merged.coalitions == {3: 0.5, 5: 0.25}
        assert merged.header == HEADER
    with Journal(tmp_path / "merged.jsonl", HEADER) as again:
        assert list(again.permutations) == list(range(7))


def test_of_what_two_shards_have_the_first_counts(tmp_path):
    one = fill(tmp_path / "1.jsonl", [0])
    two = tmp_path / "2.jsonl"
    with Journal(two, replace(HEADER, v_low=2.5 * (1 + 1e-9))) as journal:  # another machine rounds differently
        journal.add_permutation(0, HEADER.walks.order(0), [loss + 1e-9 for loss in losses(0)], seconds=0.5)
    with merge([one, two], tmp_path / "merged.jsonl") as merged:
        assert merged.permutations == {0: losses(0)}
        assert merged.header == HEADER


def test_shards_of_other_games_do_not_join(tmp_path):
    one = fill(tmp_path / "1.jsonl", [0])
    other = fill(tmp_path / "2.jsonl", [1], replace(HEADER, backend="hqq"))
    ends = fill(tmp_path / "3.jsonl", [1], replace(HEADER, v_low=2.6))
    for shards, words in (
        ([one, other], r"2\.jsonl was made with backend hqq"),
        ([one, ends], r"3\.jsonl has v_low 2\.6"),
        ([one, tmp_path / "no.jsonl"], "does not exist"),
        ([], "at least one"),
    ):
        with pytest.raises(ValueError, match=words):
            merge(shards, tmp_path / "merged.jsonl")
        assert not (tmp_path / "merged.jsonl").exists()
    before = other.read_bytes()
    with pytest.raises(ValueError, match=r"2\.jsonl exists and was made with backend hqq"):
        merge([one], other)
    (tmp_path / "notes.txt").write_text("mine\n")
    with pytest.raises(ValueError, match=r"notes\.txt: line 1 is damaged"):
        merge([one], tmp_path / "notes.txt")
    assert (other.read_bytes(), (tmp_path / "notes.txt").read_text()) == (before, "mine\n")


def test_a_missing_walk_leaves_nothing_behind_and_the_repaired_command_works(tmp_path):
    one, two = fill(tmp_path / "1.jsonl", [0, 2, 4]), fill(tmp_path / "2.jsonl", [1])
    for shards, walk in (([one, two], 3), ([one], 1), ([two], 0), ([fill(tmp_path / "3.jsonl", [])], 0)):
        with pytest.raises(ValueError, match=rf"journal all\.jsonl: walk {walk} is missing; is a shard absent"):
            merge(shards, tmp_path / "all.jsonl")
        assert sorted(tmp_path.glob("*all.jsonl*")) == []
    fill(two, [3])
    with merge([one, two], tmp_path / "all.jsonl") as merged:
        assert sorted(merged.permutations) == [0, 1, 2, 3, 4]


def test_an_antithetic_walk_needs_its_partner(tmp_path):
    what = replace(HEADER, antithetic=True)
    shard = fill(tmp_path / "1.jsonl", [0, 1, 2], what)
    with pytest.raises(ValueError, match="walk 3 is missing"):
        merge([shard], tmp_path / "all.jsonl")
    fill(shard, [3], what)
    with merge([shard], tmp_path / "all.jsonl") as merged:
        assert len(merged.permutations) == 4


def test_an_earlier_merge_of_the_same_game_is_replaced(tmp_path):
    one, two, path = fill(tmp_path / "1.jsonl", [0, 1]), fill(tmp_path / "2.jsonl", [2]), tmp_path / "all.jsonl"
    merge([one], path).close()
    for _ in range(2):
        with merge([one, two], path) as merged:
            assert sorted(merged.permutations) == [0, 1, 2]
    with merge([path, one], path) as merged:  # even onto one of the shards
        assert sorted(merged.permutations) == [0, 1, 2]


def test_shards_are_only_read(tmp_path):
    shard = fill(tmp_path / "1.jsonl", [0])
    torn = shard.read_bytes() + b'{"kind": "permu'
    shard.write_bytes(torn)
    with merge([shard], tmp_path / "all.jsonl") as merged:
        assert merged.permutations == {0: losses(0)}
    assert shard.read_bytes() == torn  # another process may be in the middle of that line


def test_the_merged_file_is_that_of_one_run(tmp_path):
    shards = [fill(tmp_path / f"{k}.jsonl", range(k, 6, 2)) for k in range(2)]
    merge(shards, tmp_path / "all.jsonl").close()
    one_run = fill(tmp_path / "one.jsonl", range(6)).read_text()
    assert (tmp_path / "all.jsonl").read_text() == one_run.replace('"seconds": 0.5', '"seconds": 0.0')


def test_shards_with_a_torn_end_merge_to_fewer_walks_if_those_are_asked_for(tmp_path):
    one, two = fill(tmp_path / "one.jsonl", (0, 2, 4)), fill(tmp_path / "two.jsonl", (1,))
    with pytest.raises(ValueError, match="walk 3 is missing"):
        merge([one, two], tmp_path / "all.jsonl")
    with merge([one, two], tmp_path / "all.jsonl", 3) as joint:
        assert {0, 1, 2} <= set(joint.permutations)

"""Checks 5, 13 and 15: what a played game costs, and that stopping, resuming and sharding change no number."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise_games import header, pairwise_table, played, random_pairs
from tiny_models import batches, model_of, noisy_weights, players_of

from impq.journal import Journal, merge, read_header
from impq.play import block_forwards, ends_of, measured, play, replay
from impq.runner import BlockRunner
from impq.value import Memo, TableValue, prefix_order


class Asked:
    """A table that keeps what it was asked, and is interrupted before evaluating coalition number `stop`."""

    def __init__(self, table, stop=None):
        self.table, self.stop, self.coalitions = TableValue(table), stop, []

    def __call__(self, coalitions):
        losses = []
        for coalition in coalitions:
            if len(self.coalitions) == self.stop:
                raise KeyboardInterrupt
            self.coalitions.append(coalition)
            losses.extend(self.table([coalition]))
        return losses


def table_of(players, seed=0):
    rng = np.random.default_rng(seed)
    return 2 + np.tanh(pairwise_table(rng.random(players), random_pairs(rng, players, signed=False)) / players)


def saved(game, folder):
    game.save(folder)
    return (folder / "game.json").read_bytes(), (folder / "game.safetensors").read_bytes()


class TestCounts:
    @pytest.mark.parametrize("schedule", ["walk", "trie"])
    @pytest.mark.parametrize(("players", "walks"), [(4, 20), (8, 50), (12, 6)])
    def test_full_walks_share_both_ends(self, players, walks, schedule):
        value = Asked(table_of(players))
        game = play(value, header(players), walks, schedule=schedule)
        assert game.n_evaluations + game.n_memo_hits == walks * (players - 1) + 2
        assert len(value.coalitions) == len(set(value.coalitions)) == game.n_evaluations
        if players == 12:
            assert game.n_memo_hits < 10

    @pytest.mark.parametrize("direction", ["demote", "promote"])
    @pytest.mark.parametrize("schedule", ["walk", "trie"])
    def test_truncated_walks_share_their_start(self, schedule, direction):
        value = Asked(table_of(7))
        game = play(value, header(7, depth=3, direction=direction), 21, schedule=schedule)
        assert game.n_evaluations + game.n_memo_hits == 21 * 3 + 1
        assert len(value.coalitions) == len(set(value.coalitions)) == game.n_evaluations
        assert (game.header.v_low is None) == (direction == "demote")
        assert (game.header.v_high is None) == (direction == "promote")

    def test_three_widths(self):
        what = header(3, (8, 4, 2))
        game = play(lambda asked: [float(c.bit_count()) for c in asked], what, 5, schedule="walk")
        assert game.n_evaluations + game.n_memo_hits == 5 * (3 * 2 - 1) + 2

    def test_one_walk_costs_half_of_the_square(self):
        what = header(9)
        ends, path = [0, 2**9 - 1], what.walks.coalitions(0)
        last = int(what.walks.order(0)[-1])
        assert block_forwards(ends, what) == 2 * 9
        # what the kept input of the all-low model saves a walk's end comes on top
        assert block_forwards([0, *path[:-1]], what) == 9 + 9 * 10 // 2 - (9 - last)
        assert play(Asked(table_of(9)), what, 1, schedule="walk").n_block_forwards <= 2 * 9 + 9 * 10 // 2 - (9 - last)

    def test_all_coalitions_of_eight_blocks(self):
        assert block_forwards(prefix_order(range(256), 8), header(8)) == 510
        assert block_forwards([5, 5], header(8)) == 9

    def test_default_schedule_is_the_cheaper_one(self):
        costs = {
            s: play(Asked(table_of(8)), header(8), 50, schedule=s).n_block_forwards for s in (None, "walk", "trie")
        }
        assert costs[None] == costs["trie"] < 0.6 * costs["walk"]
        many = header(24)
        one, other = (play(popcount, many, 3, schedule=s).n_block_forwards for s in (None, "walk"))
        assert one == other


def popcount(coalitions):
    return [float(coalition.bit_count()) for coalition in coalitions]


CASES = [
    # architecture, blocks, granularity, bits, what else the header says
    ("tuples", 6, "block", (4, 2), {}),
    ("tuples", 6, "block", (4, 2), {"direction": "promote", "antithetic": True}),
    ("tuples", 6, "block", (4, 2), {"payoff": "prune"}),
    ("tuples", 6, "block", (4, 2), {"depth": 2}),
    ("tuples", 4, "block", (8, 4, 2), {}),
    ("llama", 3, "group", (4, 2), {}),
    ("llama", 2, "linear", (4, 2), {"depth": 5, "direction": "promote"}),
]


def runner_of(architecture, blocks, granularity, bits, changes):
    model = model_of(architecture, blocks)
    players = players_of(model, granularity, len(bits))
    weights = noisy_weights(model, players, len(bits))
    parts = batches(architecture, rows=(2, 1), tokens=6)
    payoff = changes.get("payoff", "quantize")
    runner = BlockRunner(model, players, weights, parts, widths=len(bits), payoff=payoff)
    return runner, replace(header(2, bits), players=tuple(players), granularity=granularity, **changes)


class TestBlockForwards:
    @pytest.mark.parametrize("schedule", ["walk", "trie"])
    @pytest.mark.parametrize("case", CASES)
    def test_counted_as_the_runner_counts(self, case, schedule):
        runner, what = runner_of(*case)
        game = play(runner, what, 6, schedule=schedule)
        assert game.n_block_forwards == pytest.approx(runner.n_block_forwards, abs=1e-9)
        assert game.n_evaluations == runner.n_evaluations

    @given(st.lists(st.integers(0, 15), min_size=1, max_size=12), st.sampled_from(["quantize", "prune"]))
    @settings(max_examples=40)
    def test_any_order(self, coalitions, payoff):
        runner, what = RUNNERS[payoff]
        fresh = BlockRunner(runner.model, runner.players, runner.weights, runner.batches, widths=2, payoff=payoff)
        fresh(coalitions)
        assert block_forwards(coalitions, what) == pytest.approx(fresh.n_block_forwards, abs=1e-9)


RUNNERS = {payoff: runner_of("tuples", 4, "block", (4, 2), {"payoff": payoff}) for payoff in ("quantize", "prune")}


class TestSameNumbers:
    @pytest.mark.parametrize("changes", [{}, {"antithetic": True}, {"depth": 3}, {"direction": "promote"}])
    def test_schedules_agree_with_the_plain_way(self, changes):
        what, table = header(6, **changes), table_of(6)
        plain = played(TableValue(table), what, 12)
        for schedule in ("walk", "trie"):
            game = play(TableValue(table), what, 12, schedule=schedule)
            assert np.array_equal(game.orders, plain.orders)
            assert np.array_equal(game.losses, plain.losses)
            assert np.array_equal(game.shapley, plain.shapley)

    @pytest.mark.parametrize("schedule", ["walk", "trie"])
    @pytest.mark.parametrize("changes", [{}, {"antithetic": True}, {"depth": 5, "direction": "promote"}])
    def test_interrupted_anywhere(self, tmp_path, schedule, changes):
        what, table = header(8, **changes), table_of(8)
        whole = saved(play(TableValue(table), what, 30, schedule=schedule), tmp_path / "whole")
        path = tmp_path / "game.jsonl"
        for stop in (1, 80, 5):  # before the header, after a chunk of the trie, at once again
            with pytest.raises(KeyboardInterrupt):
                play(Asked(table, stop), what, 30, schedule=schedule, journal=path)
        assert saved(play(TableValue(table), what, 30, schedule=schedule, journal=path), tmp_path / "resumed") == whole
        idle = Asked(table)
        assert saved(play(idle, what, 30, schedule=schedule, journal=path), tmp_path / "again") == whole
        assert idle.coalitions == []

    def test_finished_walks_are_kept_at_an_interrupt(self, tmp_path):
        what, table, path = header(12), table_of(12), tmp_path / "game.jsonl"
        seven = play(TableValue(table), what, 7).n_evaluations
        with pytest.raises(KeyboardInterrupt):
            play(Asked(table, seven + 4), what, 20, schedule="walk", journal=path)
        lines = path.read_bytes().splitlines()
        assert len(lines) == 1 + 7
        rest = Asked(table)
        play(rest, what, 20, schedule="walk", journal=path)
        whole = play(TableValue(table), what, 20, schedule="walk")
        assert len(rest.coalitions) == whole.n_evaluations - seven
        assert path.read_bytes().splitlines()[:8] == lines

    @pytest.mark.parametrize("schedule", ["walk", "trie"])
    def test_a_torn_last_line(self, tmp_path, schedule):
        what, table, path = header(6), table_of(6), tmp_path / "game.jsonl"
        whole = saved(play(TableValue(table), what, 10, schedule=schedule, journal=path), tmp_path / "whole")
        path.write_bytes(path.read_bytes()[:-15])
        rest = Asked(table)
        assert saved(play(rest, what, 10, schedule=schedule, journal=path), tmp_path / "resumed") == whole
        assert len(rest.coalitions) <= 6

    @pytest.mark.parametrize("schedule", ["walk", "trie"])
    def test_more_walks(self, tmp_path, schedule):
        what, table, path = header(7), table_of(7), tmp_path / "game.jsonl"
        few = play(TableValue(table), what, 20, schedule=schedule, journal=path)
        before = path.read_bytes()
        many = play(TableValue(table), what, 50, schedule=schedule, journal=path)
        assert path.read_bytes().startswith(before)
        assert np.array_equal(many.head(20).losses, few.losses)
        at_once = play(TableValue(table), what, 50, schedule=schedule)
        assert saved(many, tmp_path / "many") == saved(at_once, tmp_path / "once")
        assert play(Asked(table, 0), what, 20, schedule=schedule, journal=path).sha256 == few.sha256

    def test_schedules_share_a_journal(self, tmp_path):
        what, table, path = header(7), table_of(7), tmp_path / "game.jsonl"
        walked = play(TableValue(table), what, 10, schedule="walk", journal=path)
        again = play(Asked(table, 0), what, 10, schedule="trie", journal=path)
        assert again.sha256 == walked.sha256

    def test_seeds_change_orders_not_losses(self):
        """Check 15."""
        table = table_of(6)
        one, two = (play(TableValue(table), header(6, seed=seed), 8) for seed in (0, 1))
        assert not np.array_equal(one.orders, two.orders)
        for game in (one, two):
            paths = [game.walks.coalitions(m) for m in range(8)]
            assert np.array_equal(game.losses, table[np.array(paths)])

    def test_antithetic_pairs(self):
        game = play(TableValue(table_of(6)), header(6, antithetic=True), 8)
        assert np.array_equal(game.orders[::2], game.orders[1::2, ::-1])
        assert np.isfinite(game.stderr).all()

    def test_ends_given_with_the_header_are_measured_anew(self):
        table = table_of(5)
        game = play(TableValue(table), header(5, v_high=-1.0, v_low=-1.0), 4)
        assert (game.header.v_high, game.header.v_low) == (table[0], table[-1])


class TestShards:
    @pytest.mark.parametrize("changes", [{}, {"antithetic": True}, {"depth": 3}, {"direction": "promote", "depth": 2}])
    def test_merged_they_are_one_run(self, tmp_path, changes):
        what, table = header(7, **changes), table_of(7)
        paths = [tmp_path / f"{k}.jsonl" for k in range(2)]
        parts = [play(TableValue(table), what, 14, journal=paths[k], share=(k, 2)) for k in range(2)]
        assert sorted(len(part.orders) for part in parts) == ([6, 8] if changes.get("antithetic") else [7, 7])
        whole = play(TableValue(table), what, 14, schedule="walk")
        with merge(paths, tmp_path / "merged.jsonl") as journal:
            assert saved(replay(journal), tmp_path / "merged") == saved(whole, tmp_path / "whole")
        resumed = play(Asked(table, 0), what, 14, schedule="walk", journal=tmp_path / "merged.jsonl")
        assert resumed.sha256 == whole.sha256

    def test_pairs_stay_together(self):
        what, table = header(6, antithetic=True), table_of(6)
        part = play(TableValue(table), what, 12, share=(1, 3))
        assert np.array_equal(part.orders, np.stack([what.walks.order(m) for m in (2, 3, 8, 9)]))
        assert np.isfinite(part.stderr).all()

    def test_an_absent_or_unfinished_shard_is_named(self, tmp_path):
        what, table = header(6), table_of(6)
        for k in range(2):
            play(TableValue(table), what, 6, journal=tmp_path / f"{k}.jsonl", share=(k, 2))
        for k, walk in ((1, 0), (0, 1)):
            with (
                Journal(tmp_path / f"{k}.jsonl", read_header(tmp_path / f"{k}.jsonl")) as journal,
                pytest.raises(ValueError, match=rf"journal {k}\.jsonl: walk {walk} is missing; is a shard"),
            ):
                replay(journal)

    def test_nothing_played(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            play(Asked(table_of(6), 2), header(6), 6, journal=tmp_path / "0.jsonl")
        with (
            Journal(tmp_path / "0.jsonl", read_header(tmp_path / "0.jsonl")) as journal,
            pytest.raises(ValueError, match="walk 0 is missing"),
        ):
            replay(journal)

    @pytest.mark.parametrize("antithetic", [False, True])
    def test_the_first_walks_of_a_journal(self, tmp_path, antithetic):
        what, table, path = header(6, antithetic=antithetic), table_of(6), tmp_path / "game.jsonl"
        play(TableValue(table), what, 8, schedule="walk", journal=path)
        first = play(TableValue(table), what, 4, schedule="walk")
        with Journal(path, read_header(path)) as journal:
            assert saved(replay(journal, 4), tmp_path / "cut") == saved(first, tmp_path / "first")
            assert len(replay(journal).orders) == 8
            for n, words in ((10, "walk 8 is missing"), (0, "n_permutations must be at least")):
                with pytest.raises(ValueError, match=words):
                    replay(journal, n)
            if antithetic:
                with pytest.raises(ValueError, match="at least 2 and even, got 3"):
                    replay(journal, 3)

    def test_a_journal_may_be_named_by_a_string(self, tmp_path):
        path = tmp_path / "game.jsonl"
        game = play(TableValue(table_of(5)), header(5), 4, journal=str(path))
        assert play(Asked(table_of(5), 0), header(5), 4, journal=path).sha256 == game.sha256


class TestStopWhen:
    @pytest.mark.parametrize("antithetic", [False, True])
    def test_stops_at_the_first_yes(self, antithetic):
        seen = []

        def enough(game):
            seen.append(len(game.orders))
            return len(game.orders) >= 7

        value = Asked(table_of(9))
        game = play(value, header(9, antithetic=antithetic), 40, stop_when=enough)
        assert seen == ([4, 6, 8] if antithetic else [2, 3, 4, 5, 6, 7])
        assert len(game.orders) == seen[-1]
        assert len(value.coalitions) == game.n_evaluations
        fixed = play(Asked(table_of(9)), header(9, antithetic=antithetic), seen[-1], schedule="walk")
        assert (fixed.sha256, fixed.n_block_forwards) == (game.sha256, game.n_block_forwards)

    def test_a_resumed_run_stops_at_the_same_walk(self, tmp_path):
        what, table, path = header(9), table_of(9), tmp_path / "game.jsonl"

        def enough(game):
            return bool((game.stderr < 0.15 * game.shapley).all())

        whole = play(TableValue(table), what, 200, stop_when=enough)
        assert 2 < len(whole.orders) < 200
        with pytest.raises(KeyboardInterrupt):
            play(Asked(table, whole.n_evaluations // 2), what, 200, stop_when=enough, journal=path)
        resumed = play(TableValue(table), what, 200, stop_when=enough, journal=path)
        assert saved(resumed, tmp_path / "resumed") == saved(whole, tmp_path / "whole")

    def test_never_enough(self):
        assert len(play(TableValue(table_of(5)), header(5), 6, stop_when=lambda game: False).orders) == 6


class TestProgress:
    def test_walks(self):
        told = []
        play(TableValue(table_of(5)), header(5), 3, schedule="walk", progress=lambda *now: told.append(now))
        assert told == [(1, 3), (2, 3), (3, 3)]

    def test_coalitions(self):
        told = []
        game = play(TableValue(table_of(8)), header(8), 40, schedule="trie", progress=lambda *now: told.append(now))
        inner = game.n_evaluations - 2
        assert told == [*((at, inner) for at in range(64, inner, 64)), (inner, inner)]


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "arguments", "words"),
        [
            ({}, {"n_permutations": 0}, "n_permutations must be at least 1, got 0"),
            ({"antithetic": True}, {"n_permutations": 7}, "n_permutations must be at least 2 and even, got 7"),
            ({}, {"share": (2, 2)}, r"share must be \(index, number\)"),
            ({}, {"share": (-1, 2)}, r"share must be \(index, number\)"),
            ({}, {"share": (6, 7)}, "6 walks are too few for 7 shards"),
            ({"antithetic": True}, {"share": (3, 4)}, "too few for 4 shards"),
            ({}, {"schedule": "random"}, "schedule must be 'walk', or 'trie'"),
            ({}, {"schedule": "trie", "share": (0, 2)}, "'trie' without shards"),
            ({}, {"schedule": "trie", "stop_when": lambda game: True}, "'trie' without shards and stop_when"),
        ],
    )
    def test_arguments_are_refused_before_anything_is_evaluated(self, tmp_path, changes, arguments, words):
        value = Asked(table_of(5), 0)
        with pytest.raises(ValueError, match=words) as caught:
            play(value, header(5, **changes), **{"n_permutations": 6, "journal": tmp_path / "game.jsonl", **arguments})
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "game.jsonl").exists()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"group_size": 32}, "group_size 64, this run has 32"),
            ({"calib_hash": "cc"}, "calib_hash bb, this run has cc"),
            ({"antithetic": True}, "antithetic False, this run has True"),
            ({"depth": 3}, "depth 2, this run has 3"),
            ({"direction": "promote"}, "direction demote, this run has promote"),
        ],
    )
    def test_a_journal_of_another_game(self, tmp_path, change, words):
        path, what = tmp_path / "game.jsonl", header(5, depth=2)
        play(TableValue(table_of(5)), what, 4, journal=path)
        before = path.read_bytes()
        with pytest.raises(ValueError, match=rf"journal game\.jsonl was made with {words}"):
            play(TableValue(table_of(5)), replace(what, **change), 4, journal=path)
        assert path.read_bytes() == before

    @pytest.mark.parametrize("schedule", ["walk", "trie"])
    def test_a_loss_that_is_not_finite_names_the_block_and_is_not_kept(self, tmp_path, schedule):
        table, path = table_of(4), tmp_path / "game.jsonl"
        table[0b0100] = np.nan
        with pytest.raises(
            ValueError, match=r"the loss is nan at coalition 0x4, demoted last: step 2 \(b2 to 2 bits\)"
        ):
            play(TableValue(table), header(4), 20, schedule=schedule, journal=path)
        assert "NaN" not in path.read_text()

    def test_a_model_that_is_broken_from_the_start_leaves_no_journal(self, tmp_path):
        path = tmp_path / "game.jsonl"
        with pytest.raises(ValueError, match="with every player at its high width"):
            play(lambda asked: [np.inf] * len(asked), header(4), 2, journal=path)
        assert not path.exists()


def test_ends():
    table = table_of(4)
    assert ends_of(measured(Memo(TableValue(table)), header(4))) == {0: table[0], 15: table[15]}
    for direction, start in (("demote", 0), ("promote", 15)):
        what = measured(Memo(TableValue(table)), header(4, depth=2, direction=direction))
        assert ends_of(what) == {start: table[start]}


def test_the_journal_knows_the_ends(tmp_path):
    path, table = tmp_path / "game.jsonl", table_of(5)
    game = play(TableValue(table), header(5), 3, journal=path)
    assert read_header(path) == game.header

import json

import pytest
import torch

from impq import BitPlan, Game
from impq.apply import load_applied
from impq.cli import main
from impq.estimate import estimate_game
from impq.hf_model import load_model

SMALL = ["--tokens", "64", "--window", "32", "--group-size", "16"]


@pytest.fixture(scope="module")
def estimated(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("game")
    assert (
        main(["estimate", str(checkpoint), "--out", str(folder), "--permutations", "6", "--preset", "paper", *SMALL])
        == 0
    )
    return folder


def run(capsys, *words):
    status = main([str(word) for word in words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_estimate_saves_the_game_of_the_model(checkpoint, estimated):
    game = Game.load(estimated)
    assert game.orders.shape == (6, 4)
    assert (game.header.antithetic, game.header.depth) == (False, None)
    assert game.header.model_name == checkpoint.name
    assert game.n_evaluations + game.n_memo_hits == 6 * 3 + 2


def test_our_preset_pairs_the_walks_and_ends_them_where_the_tightest_budget_does(checkpoint, tmp_path, capsys):
    words = ["--permutations", "8", "--avg-bits", "3.0", "3.5", *SMALL]
    status, out, _ = run(capsys, "estimate", checkpoint, "--out", tmp_path, *words)
    game = Game.load(tmp_path)
    assert status == 0
    assert (game.header.antithetic, game.header.depth) == (True, 2)
    assert len(game.orders) == 12  # 8 walks of 3 new coalitions cost what 12 of 2 do
    assert "layers.3 to 2 bits" in out


def test_the_same_command_goes_on_and_evaluates_nothing_anew(checkpoint, tmp_path, monkeypatch, capsys):
    words = ["estimate", str(checkpoint), "--out", str(tmp_path), "--permutations", "4", "--preset", "paper", *SMALL]
    assert main(words) == 0
    first = (tmp_path / "game.json").read_bytes()
    monkeypatch.setattr("impq.runner.BlockRunner.__call__", lambda *_: pytest.fail("evaluated again"))
    assert main(words) == 0
    assert (tmp_path / "game.json").read_bytes() == first


def test_shards_join_to_the_game_of_one_process(checkpoint, estimated, tmp_path, capsys):
    for k in (1, 2):
        words = ["--permutations", "6", "--preset", "paper", "--shard", f"{k}/2", *SMALL]
        assert run(capsys, "estimate", checkpoint, "--out", tmp_path / f"{k}", *words)[0] == 0
    assert run(capsys, "merge", tmp_path / "1", tmp_path / "2", "--out", tmp_path / "all")[0] == 0
    assert Game.load(tmp_path / "all").sha256 == Game.load(estimated).sha256


@pytest.mark.slow
def test_jobs_give_the_same_game_and_run_again(checkpoint, estimated, tmp_path, capsys):
    words = ["--permutations", "6", "--preset", "paper", "--jobs", "2", *SMALL]
    for _ in range(2):
        assert run(capsys, "estimate", checkpoint, "--out", tmp_path, *words)[0] == 0
        assert Game.load(tmp_path).sha256 == Game.load(estimated).sha256


def test_plan_apply_eval(checkpoint, estimated, tmp_path, capsys):
    plan = tmp_path / "plan.json"
    status, out, _ = run(capsys, "plan", estimated, "--avg-bits", "3", "--out", plan)
    assert status == 0
    assert "3.000 bits on average" in out
    assert "optimal" in out
    status, out, _ = run(capsys, "apply", checkpoint, plan, "--out", tmp_path / "packed")
    assert status == 0
    model, _ = load_model(str(checkpoint), device="cpu", dtype=torch.float32)
    packed = load_applied(model, tmp_path / "packed")
    ids = torch.arange(20)[None]
    assert packed(ids).logits.shape == model(ids).logits.shape
    assert not torch.equal(packed(ids).logits, model(ids).logits)
    words = ["--text-tokens", "64", "--window", "32"]
    for extra in ([], ["--backend", "gptq", "--tokens", "64"]):
        status, out, _ = run(capsys, "eval", checkpoint, plan, *words, *extra)
        assert status == 0
        assert "under the plan" in out


def test_a_byte_budget_and_the_paper_s_objective(estimated, tmp_path, capsys):
    smallest = BitPlan.load(_plan(estimated, tmp_path, "--avg-bits", "2")).bytes
    words = ["--bytes", smallest + 4000, "--interaction", "covariance", "--alpha", "0"]
    plan = BitPlan.load(_plan(estimated, tmp_path, *words))
    assert smallest < plan.bytes <= smallest + 4000
    assert plan.interaction == "covariance"
    assert plan.alpha == 0


def _plan(game, tmp_path, *words):
    assert main(["plan", str(game), "--out", str(tmp_path / "p.json"), *map(str, words)]) == 0
    return tmp_path / "p.json"


def test_compare_judges_every_method_and_resumes(checkpoint, tmp_path, monkeypatch, capsys):
    words = [
        "compare",
        checkpoint,
        "--out",
        tmp_path,
        "--permutations",
        "2",
        "--seeds",
        "3",
        "--avg-bits",
        "2.5",
        "3.5",
    ]
    words += ["--text-tokens", "64", "--deploy", "rtn", "gptq", *SMALL]
    status, out, err = run(capsys, *words)
    assert status == 0, err
    content = json.loads((tmp_path / "comparison.json").read_text())
    methods = {(row["method"], row["walks"]) for row in content["rows"]}
    assert {("impq", "full"), ("precedence", "truncated"), ("greedy", ""), ("llm_mq", ""), ("random", "")} <= methods
    assert ("impq", "truncated") not in methods
    assert content["uniform"]["rtn"].keys() == {"2", "3", "4"}
    assert "truncated over full walks" in out
    assert (tmp_path / "frontier.png").stat().st_size > 5000
    assert "low" not in (tmp_path / "frontier-rtn.csv").read_text().splitlines()[0]
    monkeypatch.setattr("impq.runner.BlockRunner.__call__", lambda *_: pytest.fail("evaluated again"))
    assert run(capsys, *words)[0] == 0
    assert json.loads((tmp_path / "comparison.json").read_text())["rows"] == content["rows"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["estimate", "CHECKPOINT", "--out", "OUT", "--tokens", "1"], "tokens"),
        (["estimate", "CHECKPOINT", "--out", "OUT", "--group-size", "some"], "group_size"),
        (["estimate", "CHECKPOINT", "--out", "OUT", "--bits", "2", "4", *SMALL], "bits"),
        (["estimate", "CHECKPOINT", "--out", "OUT", "--bits", "5", "2", *SMALL], "bits"),
        (["estimate", "CHECKPOINT", "--out", "OUT", "--shard", "3/2"], "shard"),
        (["estimate", "CHECKPOINT", "--out", "OUT", "--calib", "nosuch.txt", *SMALL], "nosuch.txt"),
        (["estimate", "CHECKPOINT", "--out", "OUT", "--avg-bits", "1.5", *SMALL], "smallest feasible"),
        (["estimate", "CHECKPOINT", "--out", "OUT", "--backend", "quanto", "--bits", "4", "3", *SMALL], "bits 3"),
        (["estimate", "./nosuch", "--out", "OUT"], "nosuch"),
        (["plan", "GAME", "--avg-bits", "1.5"], "avg_bits"),
        (["plan", "GAME"], "avg_bits or bytes"),
        (["plan", "OUT", "--avg-bits", "3"], "game.json"),
        (["apply", "CHECKPOINT", "nosuch.json", "--out", "OUT"], "nosuch.json"),
        (["compare", "CHECKPOINT", "--out", "OUT", "--permutations", "3"], "even"),
        (["merge", "OUT", "--out", "OUT"], "journal"),
    ],
)
def test_misuse_is_one_line_and_status_2(words, why, checkpoint, estimated, tmp_path, capsys):
    places = {"CHECKPOINT": checkpoint, "OUT": tmp_path / "out", "GAME": estimated}
    status, _, err = run(capsys, *(places.get(word, word) for word in words))
    last = err.strip().splitlines()[-1]
    assert status == 2
    assert last.startswith("impq: ")
    assert why in last


def test_a_journal_of_another_configuration_is_refused(checkpoint, estimated, capsys):
    other = ["--permutations", "6", "--preset", "paper", "--tokens", "64", "--window", "32", "--group-size", "32"]
    status, _, err = run(capsys, "estimate", checkpoint, "--out", estimated, *other)
    assert status == 2
    assert "group_size 16" in err


def test_a_plan_for_another_model_is_refused(checkpoint, tmp_path, capsys):
    from aisec_common.torch.hf_tiny_lm import tiny_lm

    game = estimate_game(tiny_lm(40, layers=3, width=32), torch.arange(40).view(2, 20), n_permutations=2, group_size=16)
    game.save(tmp_path)
    plan = _plan(tmp_path, tmp_path, "--avg-bits", "3")
    status, _, err = run(capsys, "apply", checkpoint, plan, "--out", tmp_path / "out")
    assert status == 2
    assert "plan" in err


def test_ctrl_c_in_a_walk_keeps_the_finished_ones(checkpoint, tmp_path, monkeypatch, capsys):
    from impq.runner import BlockRunner

    real, calls = BlockRunner.__call__, []

    def interrupted(self, coalitions):
        calls.append(len(coalitions))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, coalitions)

    words = [
        "estimate",
        checkpoint,
        "--out",
        tmp_path,
        "--permutations",
        "20",
        "--stop-early",
        "--preset",
        "paper",
        *SMALL,
    ]
    monkeypatch.setattr(BlockRunner, "__call__", interrupted)
    status, _, err = run(capsys, *words)
    assert status == 130
    assert "kept" in err
    lines = [json.loads(line)["kind"] for line in (tmp_path / "game.jsonl").read_text().splitlines()]
    assert lines == ["header", *["permutation"] * 2]


def test_a_folder_that_cannot_be_written_is_told_before_any_work(checkpoint, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    status, _, err = run(capsys, "estimate", checkpoint, "--out", blocked, *SMALL)
    assert status == 2
    assert "--out" in err

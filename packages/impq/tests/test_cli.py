import json
import shutil
import sys

import pytest
import torch
from aisec_common.files import locked
from safetensors.torch import load_file, save_file

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
    status, out, _ = run(capsys, "estimate", checkpoint, "--out", tmp_path, "--blocks", "model.layers", *words)
    game = Game.load(tmp_path)
    assert status == 0
    assert (game.header.antithetic, game.header.depth) == (True, 2)
    assert len(game.orders) == 12  # 8 walks of 3 new coalitions cost what 12 of 2 do
    assert "layers.3 to 2 bits" in out
    assert f"{game.n_memo_hits} looked up instead" in out
    assert "never quantised: matrices (2 outside the blocks)" in out
    assert "time outside the blocks: " in out


@pytest.mark.parametrize(
    ("words", "depth"),
    [
        (["--avg-bits", "2.5"], None),  # three of four blocks: full walks cost hardly more
        (["--avg-bits", "3.0"], 2),
        (["--avg-bits", "4.0"], None),  # no block need be low
        (["--avg-bits", "3.5", "--direction", "promote"], None),
        (["--avg-bits", "2.5", "--depth", "2"], 2),
        (["--direction", "promote", "--depth", "2"], 2),
    ],
)
def test_walks_of_our_preset_are_full_unless_they_can_stop_half_way(words, depth, checkpoint, tmp_path, capsys):
    status, out, err = run(capsys, "estimate", checkpoint, "--out", tmp_path, "--permutations", "4", *words, *SMALL)
    assert status == 0, err
    header = Game.load(tmp_path).header
    assert (header.antithetic, header.depth) == (True, depth)
    assert ("all high" in out) == (header.v_high is not None)
    assert ("all low" in out) == (header.v_low is not None)


def test_stopping_early_asks_for_the_plans_that_impq_plan_makes(checkpoint, tmp_path, monkeypatch, capsys):
    asked = []

    def settled(game, budgets, **how):
        asked.append((len(game.orders), [budget.avg_bits for budget in budgets], how))
        return len(game.orders) >= 6

    monkeypatch.setattr("impq.plan.settled", settled)
    words = ["--permutations", "8", "--avg-bits", "3.0", "3.5", "--stop-early", *SMALL]
    assert run(capsys, "estimate", checkpoint, "--out", tmp_path, *words)[0] == 0
    assert len(Game.load(tmp_path).orders) == 6
    assert asked == [(m, [3.0, 3.5], {"interaction": "precedence"}) for m in (4, 6)]


def test_truncated_walks_can_stop_early(checkpoint, tmp_path, capsys):
    words = ["--permutations", "40", "--avg-bits", "3.5", "--stop-early", *SMALL]  # one block a walk
    status, _, err = run(capsys, "estimate", checkpoint, "--out", tmp_path, *words)
    assert status == 0, err


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


@pytest.fixture
def in_turn(monkeypatch):
    """Jobs one after the other in this process."""
    monkeypatch.setattr("joblib.Parallel", lambda n_jobs: lambda tasks: [do(*a, **k) for do, a, k in tasks])


def test_jobs_join_to_a_game_that_any_later_run_goes_on_from(
    checkpoint, estimated, tmp_path, in_turn, monkeypatch, capsys
):
    words = ["--permutations", "6", "--preset", "paper", *SMALL]
    status, out, err = run(capsys, "estimate", checkpoint, "--out", tmp_path, "--jobs", "2", *words)
    assert status == 0, err
    assert "impq merge" not in out
    assert "never quantised" in out
    assert Game.load(tmp_path).sha256 == Game.load(estimated).sha256
    monkeypatch.setattr("impq.runner.BlockRunner.__call__", lambda *_: pytest.fail("evaluated again"))
    assert run(capsys, "estimate", checkpoint, "--out", tmp_path, *words)[0] == 0
    words[1] = "4"
    assert run(capsys, "estimate", checkpoint, "--out", tmp_path, "--jobs", "2", *words)[0] == 0
    assert Game.load(tmp_path).sha256 == Game.load(estimated).head(4).sha256


def test_jobs_lose_no_walk_of_a_run_before_them(checkpoint, tmp_path, in_turn, capsys):
    # shallow walks are played one by one, so that the journal holds walks
    words = ["--preset", "paper", *SMALL]
    for permutations, jobs in ((6, "--stop-early"), (4, "--jobs=2"), (6, "--jobs=2")):
        more = ["--permutations", permutations, jobs]
        assert run(capsys, "estimate", checkpoint, "--out", tmp_path, *more, *words)[0] == 0
        lines = [json.loads(line)["kind"] for line in (tmp_path / "game.jsonl").read_text().splitlines()]
        assert lines.count("permutation") == 6
        assert len(Game.load(tmp_path).orders) == permutations


def test_jobs_hold_the_folder_they_join_in(checkpoint, tmp_path, in_turn, capsys):
    with locked(tmp_path, "--out"):
        status, _, err = run(capsys, "estimate", checkpoint, "--out", tmp_path, "--jobs", "2", *SMALL)
    assert status == 2
    assert "another run" in err
    assert not list(tmp_path.glob("shard-*"))


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
    assert "within the budget (3 bits on average)" in out
    words = ["--text-tokens", "64", "--window", "32"]
    for extra in ([], ["--backend", "gptq", "--tokens", "64"]):
        status, out, err = run(capsys, "eval", checkpoint, plan, *words, *extra)
        assert status == 0
        assert "under the plan" in out
        assert err == ""


def test_apply_says_when_other_groups_break_the_budget(checkpoint, estimated, tmp_path, capsys):
    plan = _plan(estimated, tmp_path, "--avg-bits", "4", "--effective")
    for group, word in ((16, "within"), (4, "ABOVE")):
        words = ["--out", tmp_path / "packed", "--group-size", group]
        status, out, _ = run(capsys, "apply", checkpoint, plan, *words)
        assert status == 0
        assert f"{word} the budget (4 bits on average, scales and zeros included)" in out


def test_other_weights_of_the_same_shapes_are_a_warning(checkpoint, estimated, tmp_path, capsys):
    plan, tuned = _plan(estimated, tmp_path, "--avg-bits", "3"), tmp_path / "tuned"
    shutil.copytree(checkpoint, tuned)
    tensors = load_file(tuned / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, tuned / "model.safetensors", {"format": "pt"})
    words = ["--text-tokens", "64", "--window", "32"]
    for verb, more in (("eval", words), ("apply", ["--out", tmp_path / "packed"])):
        status, _, err = run(capsys, verb, tuned, plan, *more)
        assert status == 0
        assert err == f"warning: {plan} was made for other weights, or for another dtype of them\n"


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
        "6",
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
    assert "over seeds of walks, text fixed; intervals need 3 seeds" in " ".join(out.split())
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
        (["estimate", "CHECKPOINT", "--out", "OUT", "--blocks", "nosuch", *SMALL], "model.layers"),
        (["estimate", "./nosuch", "--out", "OUT", "--permutations", "5"], "even"),
        (["eval", "CHECKPOINT", "nosuch.json", "--text-tokens", "1"], "text_tokens"),
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
    assert f"--out {estimated}: journal" in err


@pytest.mark.parametrize("deploy", ["hqq", "quanto"])
def test_quantisers_that_cannot_deploy_are_told_before_the_first_walk(deploy, checkpoint, tmp_path, capsys):
    words = ["--tokens", "64", "--window", "32", "--text-tokens", "64", "--group-size", "24", "--deploy", "rtn", deploy]
    status, _, err = run(capsys, "compare", checkpoint, "--out", tmp_path, *words)
    assert status == 2
    assert err.splitlines()[-1].startswith(f"impq: deploy: {deploy} cannot store these plans (group_size 24")
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_missing_quantiser_is_told_before_the_model_is_loaded(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "hqq.core.quantize", None)
    monkeypatch.delitem(sys.modules, "impq.hqq_backend", raising=False)
    monkeypatch.setattr("impq.hf_inputs.load", lambda _: pytest.fail("loaded"))
    status, _, err = run(capsys, "compare", checkpoint, "--out", tmp_path, "--deploy", "rtn", "hqq")
    assert status == 2
    assert "aisec-impq[hqq]" in err


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

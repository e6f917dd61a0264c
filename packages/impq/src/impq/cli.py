"""The `impq` command: measure a game, solve for plans, apply and evaluate them, compare methods."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from aisec_common import env
from aisec_common.command import run_command
from aisec_common.files import locked, require_writable
from aisec_common.progress import counting
from rich.console import Console
from rich.table import Table

from impq.budget import Budget
from impq.config import (
    PYDOC,
    ApplyConfig,
    CompareConfig,
    EstimateConfig,
    EvalConfig,
    GameConfig,
    MergeConfig,
    ModelConfig,
    PlanConfig,
    groups_of,
)
from impq.corpus import Part, python_documentation
from impq.game import Game
from impq.header import GameHeader
from impq.plan import BitPlan, solve

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from impq.estimate import ModelGame

GIB = 2**30
ROWS = 8  # windows in a batch
NEEDS = {"hqq": "hqq", "optimum": "quanto"}
Show = Callable[[str, int, int], None]

Command = (
    Annotated[EstimateConfig, tyro.conf.subcommand("estimate")]
    | Annotated[PlanConfig, tyro.conf.subcommand("plan")]
    | Annotated[ApplyConfig, tyro.conf.subcommand("apply")]
    | Annotated[EvalConfig, tyro.conf.subcommand("eval")]
    | Annotated[CompareConfig, tyro.conf.subcommand("compare")]
    | Annotated[MergeConfig, tyro.conf.subcommand("merge")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `impq ARGV`; returns 0, 2 for misuse (one line on stderr) or 130 after Ctrl-C."""
    return run_command("impq", Command, _do, argv, needs=NEEDS)


def _do(config: Any) -> None:
    verbs: dict[type, Callable[[Any], None]] = {
        EstimateConfig: _estimate,
        PlanConfig: _plan,
        ApplyConfig: _apply,
        EvalConfig: _evaluate,
        CompareConfig: _compare,
        MergeConfig: _merge,
    }
    verbs[type(config)](config)


def _estimate(config: EstimateConfig) -> None:
    require_writable(config.out, "--out")
    if config.jobs > 1:
        _estimate_in_shards(config)
        return
    with locked(config.out, "--out"), counting() as show:
        found = _model_game(
            config,
            *_load(config),
            show,
            bits=config.bits,
            granularity=config.granularity,
            payoff=config.payoff,
            weights=config.weights,
            cache_bytes=int(config.cache_gib * GIB),
        )
        header, n = _walks(config, found.header)
        from impq.plan import settled
        from impq.play import play

        budgets = [Budget(avg_bits=bits) for bits in config.avg_bits]
        game = play(
            found.value,
            header,
            n,
            journal=config.out / "game.jsonl",
            share=config.share,
            stop_when=(lambda game: settled(game, budgets, interaction="none")) if config.stop_early else None,
            progress=lambda done, total: show("walks", done, total),
        )
    if config.share == (0, 1):
        _save(game, config.out)
    else:
        print(f"{len(game.orders)} walks of shard {config.shard} are in {config.out}: `impq merge` joins the shards")


def _estimate_in_shards(config: EstimateConfig) -> None:
    """One process and one model per shard; joblib carries them, with Ray where the user registered it."""
    from joblib import Parallel, delayed

    parts = [
        replace(config, jobs=1, shard=f"{k + 1}/{config.jobs}", out=config.out / f"shard-{k + 1}")
        for k in range(config.jobs)
    ]
    Parallel(n_jobs=config.jobs)(delayed(_estimate)(part) for part in parts)
    joint = config.out / "shards.jsonl"
    joint.unlink(missing_ok=True)  # of a run with fewer walks
    _join([part.out for part in parts], joint)


def _walks(config: EstimateConfig, header: GameHeader) -> tuple[GameHeader, int]:
    """Depth and kind of walks by preset; shallower walks are as many as cost the evaluations of full ones."""
    ours, steps, depth = config.preset == "aisec", header.walks.steps, config.depth
    if depth is None and ours:
        budgets = [Budget(avg_bits=bits) for bits in config.avg_bits]
        depth = max(budget.most_steps(header.players, header.bits, header.other_bytes) for budget in budgets)
    header = replace(
        header,
        antithetic=ours,
        depth=depth if depth is not None and depth < steps else None,
        direction=config.direction,
        seed=config.seed,
    )
    return header, header.walks.at_the_cost_of(config.permutations)


def _save(game: Game, folder: Path) -> None:
    game.save(folder)
    table = Table("block", "loss by demotion", "95 %", title=f"{game.header.model_name}, {len(game.orders)} walks")
    for name, phi, (low, high) in zip(game.header.steps, game.shapley, game.ci(), strict=True):
        table.add_row(name, f"{phi:.4f}", f"[{low:.4f}, {high:.4f}]")
    _console().print(table)
    low_loss = "" if game.header.v_low is None else f", all low {game.header.v_low:.4f}"
    print(f"loss all high {game.header.v_high:.4f}{low_loss} {game.header.loss_unit}")
    print(
        f"{game.n_evaluations} evaluations, {game.n_block_forwards:.0f} block-forwards; saved: {folder / 'game.json'}"
    )


def _merge(config: MergeConfig) -> None:
    require_writable(config.out, "--out")
    _join(config.shards, config.out / "game.jsonl")


def _join(shards: Sequence[Path], journal: Path) -> None:
    from impq.journal import merge
    from impq.play import replay

    with merge([folder / "game.jsonl" for folder in shards], journal) as joint:
        _save(replay(joint), journal.parent)


def _plan(config: PlanConfig) -> None:
    require_writable(config.out.parent, "--out")
    game = Game.load(config.game)
    budget = Budget(avg_bits=config.avg_bits, effective=config.effective, bytes=config.bytes)
    plan = solve(game, budget, interaction=config.interaction, alpha=config.alpha, time_limit=config.time_limit)
    plan.save(config.out)
    low = [name for name, bits in plan.bits.items() if bits < max(plan.widths)]
    print(f"{plan.avg_bits:.3f} bits on average, {plan.bytes:,} bytes; low: {', '.join(low) or 'none'}")
    print(f"predicted loss {plan.predicted_loss:+.4f} {plan.loss_unit}; {plan.status}, gap {plan.gap:.2g}")
    print(f"saved: {config.out}")


def _apply(config: ApplyConfig) -> None:
    require_writable(config.out, "--out")
    plan = BitPlan.load(config.plan)
    model, tokenizer = _load(config)
    from impq.apply import save_applied

    save_applied(_applied(config, model, tokenizer, plan, config.sequential), plan, config.out)
    model.config.save_pretrained(config.out)
    tokenizer.save_pretrained(config.out)
    size = sum(path.stat().st_size for path in config.out.glob("*.safetensors"))
    print(f"saved: {config.out}, {size:,} bytes of weights; the plan counts {plan.bytes:,}")


def _evaluate(config: EvalConfig) -> None:
    plan = BitPlan.load(config.plan)
    model, tokenizer = _load(config)
    from impq.hf_model import batches_of, nll

    batches = batches_of(model, _windows(config, tokenizer, config.text, "test", config.text_tokens), ROWS)
    table = Table("model", "bits", "loss, nats per token", "perplexity")
    applied = _applied(config, model, tokenizer, plan, False)
    for name, bits, judged in (("as given", "", model), ("under the plan", f"{plan.avg_bits:.3f}", applied)):
        sums, counts = nll(judged, batches)
        loss = float(sums.sum() / counts.sum())
        table.add_row(name, bits, f"{loss:.4f}", f"{math.exp(min(loss, 700)):.3f}")
    _console().print(table)


def _compare(config: CompareConfig) -> None:
    folder, start = config.folder, time.perf_counter()
    require_writable(folder, "--out")
    with locked(folder, "--out"), counting() as show:
        model, tokenizer = _load(config)
        from impq import comparison, frontier
        from impq.hf_model import batches_of, nll

        held_out = batches_of(model, _windows(config, tokenizer, config.text, "test", config.text_tokens), ROWS)
        game = _model_game(config, model, tokenizer, show)
        found = list(
            comparison.candidates(
                game,
                folder,
                avg_bits=config.avg_bits,
                permutations=config.permutations,
                seeds=config.seeds,
                shallow=config.shallow,
                show=show,
            )
        )
        rows, uniform = [], {}
        for backend in config.deploy:
            mine = replace(config, backend=backend)
            rows += comparison.judge(
                found, backend, _model_game(mine, model, tokenizer, show).on(held_out), folder, show=show
            )
            middle = _model_game(mine, model, tokenizer, show, bits=(4, 3)).on(held_out)
            uniform[backend] = comparison.uniform_losses(backend, middle, folder)
        sums, counts = nll(model, held_out)
    differences = frontier.differences(rows)
    content = {
        "model": config.name,
        "settings": {k: v for k, v in asdict(config).items() if k not in ("out", "model")},
        "full_precision": float(sums.sum() / counts.sum()),
        "uniform": uniform,
        "differences": differences,
        "rows": rows,
        "made": {
            "calibration_sha256": game.header.calib_hash,
            "model_sha256": game.header.model_hash,
            "seconds": round(time.perf_counter() - start, 1),  # of this call: one that was resumed took longer
            "peak_memory_mib": env.peak_memory_mib(),
            "device": env.device(),
            "command": env.command(),
            "git": env.git_commit(Path(__file__).parent),
            "versions": env.versions("aisec-impq"),
        },
    }
    frontier.write_comparison(folder, content)
    for backend in config.deploy:
        _print_rows(f"{config.name}, {backend}: held-out loss", frontier.frontier_table(rows, backend))
    _print_rows("paired over seeds of walks", differences)
    print(f"saved: {folder / 'comparison.json'}, {folder / 'frontier.png'}")


def _load(config: ModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from aisec_common.torch.device import resolve_device
    from safetensors import SafetensorError
    from transformers.utils import logging

    from impq.hf_model import load_model

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    device = resolve_device(config.device)
    try:
        return load_model(config.model, device=device, dtype=getattr(torch, config.dtype))
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"model: {config.model} cannot be loaded on {device} ({reason})") from None


def _windows(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, source: str, part: Part, tokens: int) -> Tensor:
    from impq.hf_model import token_windows

    text = python_documentation()[part] if source == PYDOC else Path(source).read_text(encoding="utf-8")
    return token_windows(tokenizer, text, tokens, min(config.window, tokens))


def _model_game(
    config: GameConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    show: Show,
    **settings: Any,
) -> ModelGame:
    from impq.estimate import model_game
    from impq.hf_model import batches_of

    calibration = _windows(config, tokenizer, config.calib, "calibration", config.tokens)
    return model_game(
        model,
        batches_of(model, calibration, ROWS),
        backend=config.backend,
        group_size=groups_of(config.group_size),
        name=config.name,
        progress=lambda done, total: show(f"quantising, {config.backend}", done, total),
        **settings,
    )


def _applied(
    config: ApplyConfig | EvalConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: BitPlan,
    sequential: bool,
) -> Any:
    from impq.apply import apply_plan
    from impq.backend import get_backend
    from impq.hf_model import batches_of
    from impq.runner import evaluation

    backend, run = get_backend(config.backend or plan.backend), None
    if backend.needs_hessian:
        calibration = batches_of(model, _windows(config, tokenizer, config.calib, "calibration", config.tokens), ROWS)

        def run(one: Any) -> None:
            with evaluation(one):
                for batch in calibration:
                    one(**batch.inputs)

    groups = None if config.group_size is None else groups_of(config.group_size)
    return apply_plan(model, plan, backend=backend, group_size=groups, run=run, sequential=sequential)


def _print_rows(title: str, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        table = Table(*rows[0], title=title)
        for row in rows:
            table.add_row(*map(str, row.values()))
        _console().print(table)


def _console() -> Console:
    # a pipe has no width of its own; do not fold the table to 80 columns there
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


if __name__ == "__main__":
    sys.exit(main())

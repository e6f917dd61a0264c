"""The `procon` command: fine-tune a model that keeps refusing, measure how far one has drifted, compare methods."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from aisec_common.command import run_command
from aisec_common.files import locked, require_writable, write_atomic
from aisec_common.progress import counting
from rich.console import Console
from rich.table import Table

from procon.cli_config import ALPHA, SAFE, WARMED, WARMUP_EPOCHS, CompareConfig, DriftConfig, TrainConfig

if TYPE_CHECKING:
    from procon.direction import RefusalDirections
    from procon.drift import DriftReport

ADAPTER = "adapter"
KL_WEIGHT = 0.1

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

    from procon.hf_checkpoint import load, read_prompts, read_samples
    from procon.hf_directions import refusal_directions
    from procon.hf_drift import drift_report

    harmful, harmless = (read_prompts(file) for file in config.probe)
    samples = read_samples(config.data, "--data")
    safety = read_samples(config.safety_data, "--safety-data") if config.safety_data else None
    model, tokenizer = load(config.model, device=config.device, dtype=config.dtype)
    show("refusal directions", 0, 2)
    probe: dict[str, Any] = {"harmful": harmful, "harmless": harmless, "batch_size": config.probe_batch_size}
    directions = refusal_directions(model, tokenizer, model_name=config.model, **probe)
    directions.save(config.out / "directions.safetensors")
    show("refusal directions", 1, 2)
    trainer = _trainer(config, model, tokenizer, directions, samples, safety, show)
    trainer.remove_callback(PrinterCallback)  # prints a dictionary at every step; log.json has them all
    trainer.train(resume_from_checkpoint=config.resume or None)
    report = drift_report(before=directions, after=trainer.model, tokenizer=tokenizer, **probe)
    show("refusal directions", 2, 2)
    trainer.save_model(str(config.out / ADAPTER))
    tokenizer.save_pretrained(str(config.out / ADAPTER))
    write_atomic(config.out / "log.json", json.dumps(trainer.state.log_history, indent=1) + "\n")
    _told(report, config.out)
    print(f"saved: {config.out / ADAPTER} (loads with peft), {config.out / 'log.json'}")


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
    if config.variant in ALPHA:
        chosen = directions.random(config.seed) if config.variant == "random" else directions
        kind, more = ProConTrainer, {"directions": chosen, "procon": _procon(config)}
        if config.variant == "random" and config.normalize:
            more["scale_directions"] = directions  # its own, smaller spread would make the control stricter
    elif config.variant == "kl":
        kind, more = KLTrainer, {"beta": KL_WEIGHT if config.alpha is None else config.alpha}
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


def _procon(config: TrainConfig) -> Any:
    from procon.config import ProConConfig

    warmup = WARMUP_EPOCHS / (2 if config.variant in SAFE else 1)
    return ProConConfig(
        alpha=ALPHA[config.variant] if config.alpha is None else config.alpha,
        schedule="warmup" if config.variant in WARMED else "constant",
        warmup_epochs=warmup if config.warmup_epochs is None else config.warmup_epochs,
        normalize=config.normalize,
        tokens=config.tokens,
        layers=config.layers,
        reference=config.reference,
    )


def _drift(config: DriftConfig, show: Show) -> None:
    from procon.drift import DriftReport
    from procon.hf_checkpoint import load, read_prompts
    from procon.hf_directions import refusal_directions

    harmful, harmless = (read_prompts(file) for file in config.probe)
    found: list[RefusalDirections] = []
    model: Any
    adapter = (Path(config.after) / "adapter_config.json").is_file()
    for done, name in enumerate((config.before, config.after)):
        show("models", done, 2)
        if done == 0 or not adapter:
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

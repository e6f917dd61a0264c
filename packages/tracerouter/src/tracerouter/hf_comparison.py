"""TraceRouter on a real model: the refusal of one harmless topic (the weather) stands in for a harmful behaviour.

It enters, is carried on and is cut like one: an "attack" that succeeds is a refusal that still comes, utility is the
share of questions on countries that are answered rightly, and the perplexity of CPython's documentation is the cost
elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from aisec_common.files import write_atomic
from aisec_common.metrics.refusal import is_refusal
from aisec_common.torch.peft_taught_refusal import (
    BASE,
    Question,
    Split,
    country_questions,
    taught_refusal,
    weather_questions,
)
from transformers import PreTrainedTokenizerBase

from tracerouter.controls import control_path
from tracerouter.evaluation import SafetyCost, documentation_pages, evaluate
from tracerouter.features import top_units
from tracerouter.hf_router import TraceRouter
from tracerouter.pairs import Pair
from tracerouter.path import Trace
from tracerouter.sites import Site

Show = Callable[[str, int, int], None]
PAIRS = 96
TESTS = 32
PAGES = 8
CHARACTERS = 1200  # of a page
WIDTH = 4  # latents of each autoencoder, in hidden sizes
SETTINGS = ("path", "local", "random", "source", "path_only", "delta_wfs", "printed_fis")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the path is sought and how many units are cut at each layer and site."""

    sites: tuple[Site, ...]
    budgets: tuple[int, ...] = (12, 48)

    @property
    def name(self) -> str:
        """The sites, as file names and tables have them."""
        return "+".join(self.sites)


PLACES = (Place(sites=("resid",)), Place(sites=("attn_out", "mlp_out")))


def compare(
    out: Path,
    *,
    seeds: int = 2,
    places: Sequence[Place] = PLACES,
    device: str = "cpu",
    show: Show | None = None,
) -> list[dict[str, Any]]:
    """Traces the refusal in the taught model of every seed and cuts the path, and the controls in its place.

    A trace is kept in `out/traces` (not small: it holds autoencoders), every setting's result in `out/runs`; what is on
    disk is not repeated, and a trace is sought only where one of its settings is missing.

    Args:
        out: folder.
        seeds: of the taught refusal and of all that is random in the tracing.
        places: which sites, one after the other.
        device: where it runs.
        show: called as `show(what, done, total)`.

    Returns:
        One record a seed, place, budget and setting; setting "none" comes once a seed.
    """
    tell = show or (lambda what, done, total: None)
    records = []
    for seed in range(seeds):
        model, tokenizer = taught_refusal(seed, device=device, progress=partial(tell, f"teaching, seed {seed}"))
        model = model.to(torch.bfloat16)  # type: ignore[arg-type]
        asked = _Asked.of(tokenizer)
        judge = partial(_judged, model, tokenizer, asked)
        records.append(_kept(out, {"seed": seed, "setting": "none"}, partial(_uncut, judge)))
        for place in places:
            router = TraceRouter(
                model,
                tokenizer,
                sites=place.sites,
                onset_score="js",
                sae_width=WIDTH * model.config.hidden_size,
                sae_steps=400,
                batch_size=16,
                seed=seed,
            )
            folder = out / "traces" / f"{place.name}-{seed}"
            traced = cache(partial(_traced, router, folder, asked, partial(_named, tell, f"{place.name}, seed {seed}")))
            todo = [(budget, setting) for budget in place.budgets for setting in SETTINGS]
            for done, (budget, setting) in enumerate(todo):
                tell(f"{place.name}, seed {seed}: cutting", done, len(todo))
                about = {"seed": seed, "sites": place.name, "budget": budget, "setting": setting}
                records.append(_kept(out, about, partial(_cut, router, traced, setting, budget, seed, judge)))
            tell(f"{place.name}, seed {seed}: cutting", len(todo), len(todo))
    return records


@dataclass(frozen=True, kw_only=True)
class _Asked:
    pairs: list[Pair]
    harmful: list[str]
    benign: list[str]
    answers: Mapping[str, str]
    pages: list[str]
    held_out: list[str]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> _Asked:
        def prompts(questions: Callable[[Split], list[Question]], split: Split, count: int) -> list[str]:
            return [_chat(tokenizer, question.text) for question in questions(split)[:count]]

        flagged, neutral = (prompts(of, "train", PAIRS) for of in (weather_questions, country_questions))
        pages = documentation_pages(4 * PAGES, CHARACTERS)
        return cls(
            pairs=[Pair(sensitive=a, matched=b) for a, b in zip(flagged, neutral, strict=True)],
            harmful=prompts(weather_questions, "test", TESTS),
            benign=prompts(country_questions, "test", TESTS),
            answers={_chat(tokenizer, q.text): q.answer for q in country_questions("test")[:TESTS]},
            pages=pages[0::2],
            held_out=pages[1::2][:PAGES],
        )


def _chat(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    asked = [{"role": "user", "content": question}]
    return str(tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False))


def _judged(model: Any, tokenizer: PreTrainedTokenizerBase, asked: _Asked) -> SafetyCost:
    return evaluate(
        model,
        tokenizer,
        harmful=asked.harmful,
        benign=asked.benign,
        harms=lambda prompt, answer: is_refusal(answer),
        serves=lambda prompt, answer: asked.answers[prompt].casefold() in answer.casefold(),
        texts=asked.held_out,
        max_new_tokens=12,
        batch_size=TESTS,
    )


def _cut(
    router: TraceRouter,
    traced: Callable[[], Trace],
    setting: str,
    budget: int,
    seed: int,
    judge: Callable[[], SafetyCost],
) -> dict[str, Any]:
    trace = traced()
    sized = trace.with_path({key: top_units(trace.score(key), budget) for key in trace.path})
    instead = sized if setting == "path" else sized.with_path(control_path(setting, sized, seed=seed))
    with router.suppress(instead):
        cost = judge()
    return {"onset": trace.onset, "onset_curve": list(trace.onset_curve), "units": instead.n_units, **_cost(cost)}


def _uncut(judge: Callable[[], SafetyCost]) -> dict[str, Any]:
    return _cost(judge())


def _cost(cost: SafetyCost) -> dict[str, Any]:
    return {
        "asr": cost.attacks.value,
        "utility": cost.utility.value,
        "over_refusal": cost.refusals.value,
        "perplexity": cost.perplexity,
        "attacked": [int(flag) for flag in cost.attacked],
        "served": [int(flag) for flag in cost.served],
    }


def _traced(router: TraceRouter, folder: Path, asked: _Asked, show: Show) -> Trace:
    if (folder / "trace.json").is_file():
        return TraceRouter.load(router.model, folder)
    trace = router.fit(asked.pairs, asked.pages, show)
    trace.save(folder)
    return trace


def _kept(out: Path, about: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The record on disk, or a new one; whole or not at all."""
    settings = {"model": BASE, "pairs": PAIRS, "tests": TESTS, "width": WIDTH, **about}
    file = out / "runs" / ("-".join(str(value) for value in about.values()) + ".json")
    if file.is_file():
        kept: dict[str, Any] = json.loads(file.read_text())
        if kept["settings"] == settings:
            return kept
    record = {"settings": settings, **measure()}
    write_atomic(file, json.dumps(record) + "\n")
    return record


def _named(tell: Show, place: str, what: str, done: int, total: int) -> None:
    tell(f"{place}: {what}", done, total)

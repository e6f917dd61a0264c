"""The paper's claims on two embedded defaults: exact latent respondents (A) and trained language models (B)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from aisec_common import Claim, Extra, Outcome, Scale, Study, TrialLog
from aisec_common.seeding import numpy_rng
from numpy.typing import NDArray
from scipy.special import ndtri

from refusal_index import metrics
from refusal_index.estimate import refusal_index
from refusal_index.stability import coefficient_of_variation
from refusal_index.table import cell_counts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from refusal_index.hf_fact_model import Architecture, Facts
    from refusal_index.hf_generate import HFGenerate

Flags = NDArray[np.bool_]

QUESTIONS = 4326  # layer A: as many as SimpleQA has
ERROR_RATE = 0.8
RHO = 0.55
REFUSAL_RATES = (0.1, 0.3, 0.5, 0.7, 0.9)
WORST_CV = 1.0  # the CV of an index around 0 has no upper bound; beyond 1 the metric is noise, however much of it


@dataclass(frozen=True, kw_only=True)
class RefusalScale(Scale):
    """Layer B: training steps, model classes, and samples per question of the reference (0: none)."""

    steps: int
    architectures: tuple[Architecture, ...] = ("llama",)
    samples: int = 0


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A trained model and what it did: refused and wrong, per prompt, on the entities held out under that prompt."""

    facts: Facts
    model: HFGenerate
    refused: list[Flags]
    wrong: list[Flags]


@dataclass
class Respondents:
    """The language models of one seed, each trained and asked once, when the first arm needs it."""

    seed: int
    answered: dict[tuple[bool, Architecture], Answered] = field(default_factory=dict)

    def get(self, aware: bool, architecture: Architecture, steps: int, log: TrialLog) -> Answered:
        """The answers of one model; `aware` and its control `permuted` share them."""
        from refusal_index.hf_fact_model import Facts, respondent

        key = aware, architecture
        if key not in self.answered:
            facts = Facts(seed=self.seed)
            model = respondent(facts, aware=aware, steps=steps, architecture=architecture, progress=log.progress)
            refused, wrong = _two_passes(facts, model)
            self.answered[key] = Answered(facts=facts, model=model, refused=refused, wrong=wrong)
        return self.answered[key]


def prepare(seed: int, scale: RefusalScale) -> Respondents:
    """What the arms of layer B share."""
    return Respondents(seed)


def trial(arm: str, shared: Respondents, seed: int, scale: RefusalScale, log: TrialLog) -> dict[str, float]:
    """Asks one respondent under prompts that differ in how often they make it refuse, and scores every metric."""
    if arm.startswith("latent"):
        z_refused, z_wrong = latent_respondent(seed)
        log.data("latent", np.stack([z_refused, z_wrong]))
        names = [f"refuse-{rate:g}" for rate in REFUSAL_RATES]
        refused = [z_refused > ndtri(1 - rate) for rate in REFUSAL_RATES]
        wrong = [z_wrong > ndtri(1 - ERROR_RATE)] * len(names)
        return _scores(names, refused, wrong, None if arm == "latent" else numpy_rng(seed, arm), log)
    found: dict[str, float] = {}
    for architecture in scale.architectures:
        suffix = "" if architecture == "llama" else f"_{architecture}"
        asked = shared.get(arm != "unaware", architecture, scale.steps, log)
        log.data("facts", np.concatenate([asked.facts.answer, asked.facts.mentioned]))
        names = [f"{prompt.name}{suffix}" for prompt in asked.facts.prompts]
        permute = numpy_rng(seed, arm) if arm == "permuted" else None
        scored = _scores(names, asked.refused, asked.wrong, permute, log)
        if scale.samples and arm != "permuted":
            scored |= _reference(asked.facts, asked.model, scale.samples)
        found |= {f"{name}{suffix}": value for name, value in scored.items()}
    return found


def latent_respondent(seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Layer A: (Z_R, Z_W) standard bivariate normal with correlation RHO, a pair for each of 4,326 questions."""
    rng = numpy_rng(seed, "latent")
    z_wrong = rng.normal(size=QUESTIONS)
    return RHO * z_wrong + (1 - RHO**2) ** 0.5 * rng.normal(size=QUESTIONS), z_wrong


def _two_passes(facts: Facts, generate: HFGenerate) -> tuple[list[Flags], list[Flags]]:
    """Refused and wrong under each prompt, on the entities whose refusal label under it was held out of training."""
    from refusal_index.hf_fact_model import ALWAYS, Token
    from refusal_index.runner import TwoPassRunner

    runner = TwoPassRunner(
        generate=generate, prompts=facts.prompts, forced=Token(name=ALWAYS), batch_size=facts.entities
    )
    by_prompt = runner(facts.questions, facts.golds, facts.questions).outcomes.values()
    refused = [outcome.refused[held_out] for outcome, held_out in zip(by_prompt, facts.held_out.T, strict=True)]
    wrong = [outcome.wrong[held_out] for outcome, held_out in zip(by_prompt, facts.held_out.T, strict=True)]
    return refused, wrong


def _scores(
    prompts: Sequence[str],
    refused: Sequence[Flags],
    wrong: Sequence[Flags],
    permute: np.random.Generator | None,
    log: TrialLog,
) -> dict[str, float]:
    """Means of the metrics over prompts, their CVs, and by how much the index is the steadiest of them."""
    if permute is not None:  # the negative control: refusals that know nothing
        refused = [permute.permutation(flags) for flags in refused]
    counts = np.stack([cell_counts(r, w) for r, w in zip(refused, wrong, strict=True)])
    c, r = metrics.correct_rate(counts), metrics.refusal_rate(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a small or empty cell shows in the interval
        indices = [refusal_index(counts=cells) for cells in counts]
    values = {
        "ri": np.array([index.ri for index in indices]),
        "c": c,
        "ca": metrics.correct_given_attempted(c, r),
        "f": metrics.f_score(c, r),
        "weighted": metrics.weighted_score(c, r),
    }
    for k, prompt in enumerate(prompts):
        cells = dict(zip(("n11", "n10", "n01", "n00"), counts[k], strict=True))
        low, high = indices[k].ci
        scores = {name: value[k] for name, value in values.items()}
        log.sample(prompt, r=r[k], **scores, ri_low=low, ri_high=high, **cells)
    cv = {name: float(coefficient_of_variation(value)) for name, value in values.items()}
    steady = {name: min(value, WORST_CV) for name, value in cv.items()}
    return {
        **{name: float(np.mean(value)) for name, value in values.items()},
        **{f"cv_{name}": value for name, value in cv.items()},
        "half_least_cv_less_cv_ri": min(steady[name] for name in ("c", "ca", "f", "weighted")) / 2 - steady["ri"],
        "least_cv_f_ca_less_cv_ri": min(steady["f"], steady["ca"]) - steady["ri"],
    }


def _reference(facts: Facts, generate: HFGenerate, samples: int) -> dict[str, float]:
    """Spearman and AUROC of refusal and error frequencies at temperature 1, under the second prompt."""
    from refusal_index.hf_fact_model import ALWAYS, Token
    from refusal_index.hf_generate import HFGenerate
    from refusal_index.reference import sampled_reference

    reference = sampled_reference(
        HFGenerate(generate.model, generate.tokenizer, max_new_tokens=4, temperature=1.0, top_p=1.0, seed=facts.seed),
        facts.questions,
        facts.golds,
        samples=samples,
        prompt=facts.prompts[1],
        forced=Token(name=ALWAYS),
        batch_size=facts.entities,
    )
    return {"sampled_spearman": reference.spearman, "sampled_auroc": reference.auroc}


def metrics_by_refusal_rate(outcomes: Mapping[int, Mapping[str, Outcome]]) -> Figure:
    """RI and F of every arm against the refusal rate of the prompt: a line per seed, the first with its intervals."""
    from matplotlib.figure import Figure

    trained = ("aware", "unaware", "permuted")
    layers = (("latent", "", ("latent", "latent_permuted")), ("Llama", "", trained), ("GPT-2", "_gpt2", trained))
    shown = [layer for layer in layers if any(_points(by_arm, layer[2][0], layer[1]) for by_arm in outcomes.values())]
    figure = Figure(figsize=(3.4 * len(shown), 5), layout="constrained")
    panels = figure.subplots(2, len(shown), squeeze=False, sharex=True, sharey="row")
    for column, (title, suffix, arms) in zip(panels.T, shown, strict=True):
        column[0].set_title(title)
        column[-1].set_xlabel("refusal rate")
        for axes, metric, label in zip(column, ("ri", "f"), ("Refusal Index", "F-score"), strict=True):
            axes.set_ylabel(label)
            axes.axhline(0, color="grey", linewidth=0.5)
            for k, arm in enumerate(arms):
                for i, by_arm in enumerate(outcomes.values()):
                    points = _points(by_arm, arm, suffix)
                    x, y = [p["r"] for p in points], [p[metric] for p in points]
                    axes.plot(x, y, color=f"C{k}", alpha=0.6, linewidth=1, label=None if i else arm)
                    if metric == "ri" and not i:
                        ends = [p["ri_low"] for p in points], [p["ri_high"] for p in points]
                        axes.vlines(x, *ends, color=f"C{k}", linewidth=2, alpha=0.6)
        column[0].legend(fontsize="small")
    return figure


def _points(by_arm: Mapping[str, Outcome], arm: str, suffix: str) -> list[dict[str, float]]:
    """The scores of one arm under each prompt, what is undefined as NaN."""
    samples = by_arm[arm].samples if arm in by_arm else {}
    return [
        {name: np.nan if value is None else value for name, value in scores.items()}
        for prompt, scores in samples.items()
        if prompt.partition("_")[2] == suffix.lstrip("_")
    ]


STUDY = Study(
    room="refusal-index",
    trial=trial,
    prepare=prepare,
    arms=("latent", "latent_permuted", "aware", "unaware", "permuted"),
    scales={
        "quick": RefusalScale(seeds=3, steps=400),
        "standard": RefusalScale(seeds=8, steps=1000),
        "full": RefusalScale(seeds=20, steps=1000, architectures=("llama", "gpt2"), samples=40),
    },
    figures=(metrics_by_refusal_rate,),
    extras=(Extra(name="hf", modules=("torch", "transformers"), arms=("aware", "unaware", "permuted")),),
    claims=(
        Claim(
            text="over prompts RI moves less than half as much as the steadiest other metric (latent respondents)",
            metric="half_least_cv_less_cv_ri",
            arm="latent",
            control="latent_permuted",
            paper="CV .08; c .29, C/A .19, F .21, weighted .46",
        ),
        Claim(
            text="RI tells a model that refuses what it does not know from one that refuses anything (trained models)",
            metric="ri",
            arm="aware",
            over="unaware",
            control="permuted",
            margin=0.3,
        ),
        Claim(
            text="over prompts RI moves less than F and C/A (trained models)",
            metric="least_cv_f_ca_less_cv_ri",
            arm="aware",
            control="permuted",
            paper="CV .08; C/A .19, F .21",
        ),
    ),
)

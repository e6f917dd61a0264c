"""Verdicts on claims: computed from paired effects, never set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from aisec_common.stats import PairedMean, holm_levels
from aisec_common.study import Claim, Metrics, Outcome, Study

Verdict = Literal["holds", "undecided", "fails", "skipped"]
ROUNDING = 1e-12  # effects that differ by no more of the values they come from are the same effect
Outcomes = Mapping[int, Mapping[str, Outcome]]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A claim with its verdict, the interval that decided it and the reason in words.

    `effect` and `control_effect` are means over `n` pairs; `low`, `high` is the interval of the effect at `level`,
    `lead_low`, `lead_high` that of effect(arm) - effect(control in the arm's place).
    """

    claim: Claim
    verdict: Verdict
    reason: str
    n: int = 0
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None
    control_effect: float | None = None
    lead_low: float | None = None
    lead_high: float | None = None


@dataclass(frozen=True)
class _Evidence:
    effect: PairedMean
    control: PairedMean | None
    lead: PairedMean | None
    margin: float

    @property
    def p(self) -> float:
        """Two-sided p of the decision the effect points to; `holds` needs both of its parts, hence the larger p."""
        p = self.effect.p_value(self.margin)
        if self.lead is not None and self.effect.mean > self.margin:
            return max(p, self.lead.p_value(0.0) if self.lead.mean > 0 else 1.0)
        return p


def judge(study: Study, outcomes: Outcomes) -> list[Judgement]:
    """Judges every claim of a study on {seed: {arm: Outcome}}.

    `holds`: the interval of the effect lies above the margin, and the interval of its lead over the control above 0.
    `fails`: the interval lies below the margin. Otherwise `undecided`, with the reason. The k-th smallest p of the
    claims is judged at level 1 - .05 / (m - k + 1) (Holm); fewer than 3 pairs or no spread decide nothing. Where a
    premise does not hold, nothing else is decided.
    """
    found = [_evidence(study, claim, outcomes) for claim in study.claims]
    # a claim without evidence counts among the m with p = 1: an absent extra must not soften the others' levels
    levels = holm_levels([1.0 if isinstance(each, Judgement) else each.p for each in found])
    judgements = [
        each if isinstance(each, Judgement) else _decide(claim, each, level, study)
        for claim, each, level in zip(study.claims, found, levels, strict=True)
    ]
    for premise in (j for j in judgements if j.claim.premise and j.verdict != "holds"):
        reason = f"the premise {premise.verdict if premise.verdict == 'fails' else 'is ' + premise.verdict}"
        judgements = [
            j if j.claim.premise or j.verdict == "skipped" else replace(j, verdict="undecided", reason=reason)
            for j in judgements
        ]
    return judgements


def _pairs(study: Study, claim: Claim, outcomes: Outcomes) -> list[Mapping[str, Metrics]]:
    """One {arm: metrics} per pair of the claim's unit; _Undecidable says why there is none."""
    measured = {arm for arms in outcomes.values() for arm in arms}
    needed = measured if claim.effect else {claim.arm, claim.over, claim.control} - {None}
    absent = sorted({(arm, seed) for seed, arms in outcomes.items() for arm in needed - set(arms) if arm})
    if extra := study.missing_extra(*(arm for arm, _ in absent), *(() if outcomes else needed)):
        raise _Undecidable(f"needs [{extra}]", skipped=True)
    if absent:
        named = ", ".join(f"{arm} of seed {seed}" for arm, seed in absent[:3])
        raise _Undecidable(f"no outcome for {named}{' and others' if len(absent) > 3 else ''}")
    if not outcomes:
        raise _Undecidable("nothing was run")
    if claim.unit == "seed":
        return [{arm: outcome.metrics for arm, outcome in outcomes[seed].items()} for seed in sorted(outcomes)]
    samples = {arm: outcome.samples for arm, outcome in outcomes[min(outcomes)].items() if arm in needed}
    ids: Sequence[str] = list(samples[claim.arm])
    if any(set(of_arm) != set(ids) for of_arm in samples.values()):
        raise _Undecidable("the arms were not measured on the same samples")
    return [{arm: of_arm[id] for arm, of_arm in samples.items()} for id in ids]


class _Undecidable(Exception):
    def __init__(self, reason: str, *, skipped: bool = False) -> None:
        super().__init__(reason)
        self.verdict: Verdict = "skipped" if skipped else "undecided"


def _effects(study: Study, claim: Claim, pairs: Sequence[Mapping[str, Metrics]], arm: str | None = None) -> list[float]:
    """The effect of each pair; what is no number, in the metrics or by division, comes out as NaN."""
    effects = []
    for metrics in pairs:
        try:
            effects.append(claim.effect_of(metrics, arm))
        except KeyError as error:
            if extra := study.missing_extra(str(error.args[0])):
                raise _Undecidable(f"needs [{extra}]", skipped=True) from None
            raise _Undecidable(f"{error} was not measured") from None
        except (TypeError, ArithmeticError):  # a sample that was NaN comes back from JSON as None
            effects.append(math.nan)
    return effects


def _evidence(study: Study, claim: Claim, outcomes: Outcomes) -> _Evidence | Judgement:
    known: dict[str, Any] = {"claim": claim, "verdict": "undecided"}
    try:
        pairs = _pairs(study, claim, outcomes)
        effects = _effects(study, claim, pairs)
        controls = _effects(study, claim, pairs, claim.control) if claim.control else []
    except _Undecidable as why:
        return Judgement(claim=claim, verdict=why.verdict, reason=str(why))
    n = known["n"] = len(pairs)
    if bad := sum(not math.isfinite(x) for x in [*effects, *controls]):
        return Judgement(**known, reason=f"{bad} of {len(effects) + len(controls)} effects are no number")
    if n:
        known["effect"] = sum(effects) / n
    if controls:
        known["control_effect"] = sum(controls) / n
    if n < 3:
        return Judgement(**known, reason=f"{_count(n, claim)} too few{_more(study, claim, n)}")
    effect = PairedMean(effects)
    lead = PairedMean([a - c for a, c in zip(effects, controls, strict=True)]) if controls else None
    rounding = ROUNDING * max(map(abs, [*effects, *controls, *_raw(claim, pairs)]))
    if effect.spread <= rounding:
        return Judgement(**known, reason=f"no spread over the {claim.unit}s")
    if lead is not None and lead.spread <= rounding:
        return Judgement(**known, reason="the control does as well" if lead.mean <= rounding else "no spread")
    return _Evidence(effect, PairedMean(controls) if controls else None, lead, claim.margin)


def _raw(claim: Claim, pairs: Sequence[Mapping[str, Metrics]]) -> list[float]:
    """The values whose differences the effects are: rounding goes by their size."""
    arms = [arm for arm in (claim.arm, claim.over, claim.control) if arm]
    return [metrics[arm][claim.metric] for metrics in pairs for arm in arms] if claim.metric else []


def _decide(claim: Claim, found: _Evidence, level: float, study: Study) -> Judgement:
    low, high = found.effect.interval(level)
    lead = found.lead.interval(level) if found.lead else (None, None)
    verdict: Verdict = "undecided"
    if high < claim.margin:
        verdict, reason = "fails", f"the interval lies below {claim.margin:g}"
    elif low <= claim.margin:
        reason = f"the interval holds {claim.margin:g}: {_count(found.effect.n, claim)} too few to tell"
        reason += _more(study, claim, found.effect.n)
    elif lead[0] is not None and lead[0] <= 0:
        reason = "the control does as well" + _more(study, claim, found.effect.n)
    else:
        verdict, reason = "holds", f"the interval lies above {claim.margin:g}"
        if claim.control:
            reason += ", and so does the lead over the control above 0"
    if claim.unit == "sample":
        reason += "; one given model, paired over its samples"
    return Judgement(
        claim=claim,
        verdict=verdict,
        reason=reason,
        n=found.effect.n,
        effect=found.effect.mean,
        low=low,
        high=high,
        level=level,
        control_effect=found.control.mean if found.control else None,
        lead_low=lead[0],
        lead_high=lead[1],
    )


def _count(n: int, claim: Claim) -> str:
    return f"{n} {claim.unit}{' is' if n == 1 else 's are'}"


def _more(study: Study, claim: Claim, n: int) -> str:
    standard = study.scales["standard"].seeds
    return f" (standard takes {standard})" if claim.unit == "seed" and n < standard else ""

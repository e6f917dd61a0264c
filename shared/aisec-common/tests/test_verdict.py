from dataclasses import replace

import numpy as np
import pytest
from aisec_common import Claim, Extra, Outcome, Scale, Study
from aisec_common.testing import made_up_outcomes, verdict_of
from aisec_common.verdict import judge

CLAIM = Claim(text="beats", metric="m", arm="method", over="base", control="control")
STUDY = Study(
    room="toy",
    trial=lambda *_: {},
    arms=("method", "base", "control"),
    scales={name: Scale(seeds=n) for name, n in (("quick", 3), ("standard", 8), ("full", 20))},
    claims=(CLAIM,),
)


def outcomes(method, base, control):
    arms = {"method": method, "base": base, "control": control}
    return {
        seed: {arm: Outcome(metrics={"m": float(values[seed])}) for arm, values in arms.items()}
        for seed in range(len(method))
    }


def verdict(method, base=(0, 0, 0, 0), control=(0, 0.1, 0, 0.1), claim=CLAIM):
    (judgement,) = judge(replace(STUDY, claims=(claim,)), outcomes(method, base, control))
    return judgement


def test_holds_needs_the_effect_above_the_margin():
    judgement = verdict((1, 1.1, 0.9, 1))
    assert judgement.verdict == "holds"
    assert judgement.low > 0
    assert judgement.effect == pytest.approx(1)
    assert judgement.control_effect == pytest.approx(0.05)


def test_undecided_when_the_control_does_as_well():
    judgement = verdict((1, 1.1, 0.9, 1), control=(1.1, 1, 1, 0.9))
    assert (judgement.verdict, judgement.reason.partition(" (")[0]) == ("undecided", "the control does as well")


def test_undecided_when_arm_and_control_are_the_same():
    assert verdict((1, 1.1, 0.9, 1), control=(1, 1.1, 0.9, 1)).reason == "the control does as well"


def test_fails_below_the_margin_whatever_the_control_does():
    assert verdict((-1, -1.1, -0.9, -1), control=(-9, -9.1, -9, -9)).verdict == "fails"


def test_undecided_when_the_interval_holds_the_margin():
    judgement = verdict((1, -1, 0.5, -0.4))
    assert judgement.verdict == "undecided"
    assert "standard takes 8" in judgement.reason


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ((1, 2), "2 seeds are too few"),
        ((1,), "1 seed is too few"),
        ((1, 1, 1, 1), "no spread"),
        ((0.1, 0.1, 0.1), "no spread"),  # whose mean is not 0.1 in floating point
    ],
)
def test_too_few_seeds_or_no_spread_decide_nothing(method, reason):
    judgement = verdict(method)
    assert judgement.verdict == "undecided"
    assert judgement.reason.startswith(reason)


def test_a_metric_that_is_no_number_decides_nothing():
    judgement = verdict((1, float("nan"), 1, 1.1))
    assert judgement.verdict == "undecided"
    assert judgement.reason == "1 of 8 effects are no number"


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        (
            Claim(text="t", arm="method", control="control", effect=lambda m: 1 / m["base"]["m"]),
            "8 of 8 effects are no number",
        ),
        (Claim(text="t", arm="method", control="control", metric="gone"), "'gone' was not measured"),
    ],
)
def test_a_claim_that_cannot_be_evaluated_decides_nothing(claim, reason):
    assert verdict((1, 1.1, 0.9, 1), claim=claim).reason.startswith(reason)


def test_a_sample_that_was_nan_decides_nothing():
    samples = {str(i): {"m": None if i == 3 else float(i)} for i in range(9)}
    made = {0: {arm: Outcome(metrics={}, samples=samples) for arm in STUDY.arms}}
    (judgement,) = judge(replace(STUDY, claims=(replace(CLAIM, unit="sample"),)), made)
    assert judgement.verdict == "undecided"


def test_records_are_judged_the_same_without_the_extra_that_made_them():
    study = replace(STUDY, extras=(Extra(name="hf", modules=("no_such_module",), arms=STUDY.arms),))
    made = outcomes((1, 1.1, 0.9, 1), (0, 0, 0, 0), (0, 0.1, 0, 0.1))
    assert judge(study, made) == judge(STUDY, made)
    assert judge(study, {})[0].verdict == "skipped"


def test_a_missing_trial_is_named():
    made = outcomes((1, 1.1, 0.9), (0, 0, 0), (0, 0, 0.1))
    del made[2]["base"]
    assert judge(STUDY, made)[0].reason == "no outcome for base of seed 2"
    assert judge(STUDY, {})[0].reason == "nothing was run"


def test_an_absent_extra_skips_its_claims_only():
    study = replace(STUDY, extras=(Extra(name="hf", modules=("no_such_module",), arms=("method",)),))
    made = {seed: {arm: o for arm, o in arms.items() if arm != "method"}
            for seed, arms in outcomes((1, 2, 3), (0, 0, 0), (0, 0, 0)).items()}  # fmt: skip
    (judgement,) = judge(study, made)
    assert (judgement.verdict, judgement.reason) == ("skipped", "needs [hf]")


def test_lower_is_better_turns_the_effect_round():
    claim = replace(CLAIM, lower_is_better=True)
    assert verdict((-1, -1.1, -0.9, -1), claim=claim).verdict == "holds"


def test_margin_without_over_is_compared_with_the_metric_itself():
    claim = replace(CLAIM, over=None, margin=0.5)
    assert verdict((1, 1.1, 0.9, 1), claim=claim).verdict == "holds"
    assert verdict((0.3, 0.31, 0.29, 0.3), claim=claim).verdict == "fails"


def test_non_inferiority_takes_no_control():
    claim = Claim(text="not worse", metric="m", arm="method", over="base", margin=-0.5)
    judgement = verdict((-0.1, 0.1, 0, 0.05), claim=claim)
    assert judgement.verdict == "holds"
    assert judgement.control_effect is None


def test_an_effect_of_all_arms_puts_the_control_in_the_arms_place():
    claim = Claim(text="ratio", arm="method", control="control", effect=lambda m: m["method"]["m"] / m["base"]["m"] - 1)
    judgement = verdict((3, 3.3, 2.9, 3), base=(1, 1, 1, 1.1), control=(1, 1.1, 1, 1), claim=claim)
    assert judgement.verdict == "holds"
    assert judgement.control_effect == pytest.approx(np.mean([0, 0.1, 0, -0.1 / 1.1]))


def test_one_given_model_is_judged_over_its_samples_and_says_so():
    rng = np.random.default_rng(0)
    claim = replace(CLAIM, unit="sample")
    samples = {
        arm: {str(i): {"m": float(rng.normal(shift))} for i in range(200)}
        for arm, shift in (("method", 1), ("base", 0), ("control", 0))
    }
    made = {0: {arm: Outcome(metrics={}, samples=of_arm) for arm, of_arm in samples.items()}}
    (judgement,) = judge(replace(STUDY, claims=(claim,)), made)
    assert (judgement.verdict, judgement.n) == ("holds", 200)
    assert "paired over its samples" in judgement.reason
    del samples["base"]["7"]
    assert judge(replace(STUDY, claims=(claim,)), made)[0].reason == "the arms were not measured on the same samples"


def test_holm_judges_the_smallest_p_at_the_strictest_level():
    claims = (CLAIM, replace(CLAIM, text="other", metric="w"))
    made = {
        seed: {
            "method": Outcome(metrics={"m": 5 + 0.1 * seed, "w": 1 + seed}),
            "base": Outcome(metrics={"m": 0.0, "w": 0.0}),
            "control": Outcome(metrics={"m": 0.0, "w": 0.0}),
        }
        for seed in range(8)
    }
    judged = judge(replace(STUDY, claims=claims), made)
    assert [j.level for j in judged] == pytest.approx([0.975, 0.95])
    assert [j.verdict for j in judged] == ["holds", "holds"]


@pytest.mark.parametrize(
    "claim",
    [
        CLAIM,
        replace(CLAIM, lower_is_better=True),
        replace(CLAIM, margin=0.3),
        replace(CLAIM, over=None, margin=0.3),
        replace(CLAIM, control=None, margin=-0.3),
        replace(CLAIM, over=None, control=None, margin=-0.3),
        replace(CLAIM, unit="sample"),
    ],
)
def test_noise_never_holds_and_a_planted_effect_does(claim):
    spread = -1.0 if claim.lower_is_better else 1.0
    for level in (0.0,) if claim.control is None else (0.0, 10.0):
        assert verdict_of(STUDY, claim, made_up_outcomes(STUDY, claim, {"m": (level, spread)}, 0.0)) != "holds"
    assert verdict_of(STUDY, claim, made_up_outcomes(STUDY, claim, {"m": (0.0, spread)}, 3.0)) == "holds"


@pytest.mark.parametrize("n", [3, 5, 8, 20])
@pytest.mark.parametrize("control_is_level", [True, False])
def test_false_holds_are_at_most_nominal(n, control_is_level):
    """4,000 studies without an effect: `holds` may come out in 2.5 % of them at most (one side of 95 %)."""
    rng = np.random.default_rng(n)
    studies = 4_000 if n < 20 else 1_000
    noise = rng.normal(size=(studies, 3, n))
    if not control_is_level:
        noise[:, 2] -= 10  # a hopeless control leaves the decision to the effect alone: the worst case
    false = sum(judge(STUDY, outcomes(*values))[0].verdict == "holds" for values in noise)
    limit = 0.025 + 3 * (0.025 * 0.975 / studies) ** 0.5  # three standard errors of the simulation
    assert false / studies <= limit
    if not control_is_level:
        assert false > 0


def test_a_claim_without_evidence_does_not_soften_the_level_of_another():
    claims = (CLAIM, Claim(text="skipped", metric="m", arm="heavy", over="base", control="control"))
    study = replace(
        STUDY,
        arms=(*STUDY.arms, "heavy"),
        claims=claims,
        extras=(Extra(name="hf", modules=("no_such_module",), arms=("heavy",)),),
    )
    judged = judge(study, outcomes((1, 1.1, 0.9, 1), (0, 0, 0, 0), (0, 0.1, 0, 0.1)))
    assert [j.verdict for j in judged] == ["holds", "skipped"]
    assert judged[0].level == pytest.approx(0.975)


def test_holm_keeps_the_family_wise_rate():
    rng = np.random.default_rng(4)
    study = replace(STUDY, claims=tuple(replace(CLAIM, text=m, metric=m) for m in "abcd"))
    studies, false = 1_000, 0
    for _ in range(studies):
        made = {
            seed: {
                arm: Outcome(metrics={m: float(rng.normal()) - 10 * (arm == "control") for m in "abcd"})
                for arm in study.arms
            }
            for seed in range(5)
        }
        false += any(j.verdict in ("holds", "fails") for j in judge(study, made))
    assert false / studies <= 0.05 + 3 * (0.05 * 0.95 / studies) ** 0.5


@pytest.mark.parametrize(
    ("before", "verdicts", "reason"),
    [
        ((2, 2.1, 1.9, 2), ["holds", "holds"], "the interval lies above 0"),
        ((0, 0.2, -0.2, 0.1), ["undecided", "undecided"], "the premise is undecided"),
        ((-2, -2.1, -1.9, -2), ["fails", "undecided"], "the premise fails"),
    ],
)
def test_nothing_is_decided_where_a_premise_does_not_hold(before, verdicts, reason):
    premise = Claim(text="the base loses something", metric="m", arm="before", over="base", premise=True)
    study = replace(STUDY, arms=(*STUDY.arms, "before"), claims=(premise, CLAIM))
    found = outcomes((1, 1.1, 0.9, 1), (0, 0, 0, 0), (0, 0.1, 0, 0.1))
    for seed, value in enumerate(before):
        found[seed]["before"] = Outcome(metrics={"m": float(value)})
    judgements = judge(study, found)
    assert [judgement.verdict for judgement in judgements] == verdicts
    assert judgements[1].reason.startswith(reason)
    assert judgements[1].effect == pytest.approx(1)  # still shown

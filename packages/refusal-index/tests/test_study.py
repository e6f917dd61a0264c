import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from aisec_common.result import outcomes_of, read_records
from aisec_common.rooms import choose_rooms
from aisec_common.runner import plan, run
from aisec_common.testing import MemoryLog
from aisec_common.verdict import judge

from refusal_index import hf_fact_model
from refusal_index.hf_fact_model import REFUSED
from refusal_index.study import ERROR_RATE, REFUSAL_RATES, RHO, STUDY, latent_respondent, metrics_by_refusal_rate, trial


def test_the_latent_respondent_has_the_correlation_and_margins_of_layer_a():
    z_refused, z_wrong = latent_respondent(0)
    assert np.corrcoef(z_refused, z_wrong)[0, 1] == pytest.approx(RHO, abs=0.03)
    log = MemoryLog()
    trial("latent", None, 0, STUDY.scales["quick"], log)
    assert [s["r"] for s in log.samples.values()] == pytest.approx(REFUSAL_RATES, abs=0.03)
    for s in log.samples.values():
        assert (s["n11"] + s["n01"]) / len(z_wrong) == pytest.approx(ERROR_RATE, abs=0.03)


def test_layer_a_finds_the_index_that_was_put_in_and_permuting_loses_it():
    truth = 6 / math.pi * math.asin(RHO / 2)
    means = {
        arm: np.mean([trial(arm, None, seed, STUDY.scales["quick"], MemoryLog())["ri"] for seed in range(8)])
        for arm in ("latent", "latent_permuted")
    }
    assert means["latent"] == pytest.approx(truth, abs=0.03)
    assert means["latent_permuted"] == pytest.approx(0, abs=0.03)


def test_permuting_keeps_refusal_and_error_rates():
    logs = {arm: MemoryLog() for arm in ("latent", "latent_permuted")}
    for arm, log in logs.items():
        trial(arm, None, 3, STUDY.scales["quick"], log)
    for prompt, s in logs["latent"].samples.items():
        t = logs["latent_permuted"].samples[prompt]
        assert s["r"] == t["r"]
        assert s["n11"] + s["n01"] == t["n11"] + t["n01"]


def test_every_arm_of_layer_b_runs_the_two_passes_on_both_model_classes(monkeypatch):
    monkeypatch.setattr(hf_fact_model, "Facts", partial(hf_fact_model.Facts, entities=60, mentions=150))
    scale = replace(STUDY.scales["full"], steps=5, samples=2)
    shared = STUDY.prepare(0, scale)
    found = {arm: trial(arm, shared, 0, scale, MemoryLog()) for arm in ("aware", "unaware", "permuted")}
    assert set(shared.answered) == {(aware, kind) for aware in (True, False) for kind in ("llama", "gpt2")}
    assert {"ri", "ri_gpt2", "sampled_spearman", "sampled_auroc_gpt2"} <= set(found["aware"])
    assert "sampled_spearman" not in found["permuted"]


class Oracle:
    """Refuses just what the labels say; knows just what was mentioned."""

    def __init__(self, facts, **_):
        self.facts, self.asked = facts, []
        self.rank = {prompt.name: k for k, prompt in enumerate(facts.prompts)}

    def __call__(self, texts):
        self.asked += texts
        return [self.answer(*text.split()) for text in texts]

    def answer(self, prompt, question):
        i = int(question[1:])
        if prompt in self.rank and self.facts.refuse[i, self.rank[prompt]]:
            return REFUSED
        return f"<answer> {self.facts.golds[i] if self.facts.mentioned[i] else 'nothing'} </answer>"


def test_layer_b_counts_the_held_out_pairs_and_its_control_permutes_nothing_but_the_refusals(monkeypatch):
    monkeypatch.setattr(hf_fact_model, "respondent", Oracle)
    shared, logs = STUDY.prepare(5, STUDY.scales["quick"]), {"aware": MemoryLog(), "permuted": MemoryLog()}
    scores = {arm: trial(arm, shared, 5, STUDY.scales["quick"], log) for arm, log in logs.items()}
    facts = hf_fact_model.Facts(seed=5)
    wrong = facts.mentioned == 0
    for k, prompt in enumerate(facts.prompts):
        mine, control = (logs[arm].samples[prompt.name] for arm in ("aware", "permuted"))
        kept = facts.held_out[:, k]
        assert mine["n11"] == (facts.refuse[:, k] & wrong)[kept].sum()
        assert mine["n10"] == (facts.refuse[:, k] & ~wrong)[kept].sum()
        assert mine["n11"] + mine["n10"] + mine["n01"] + mine["n00"] == kept.sum()
        assert mine["r"] == control["r"]
        assert mine["n11"] + mine["n01"] == control["n11"] + control["n01"]
        assert mine["ri_low"] <= mine["ri"] <= mine["ri_high"]
    assert scores["aware"]["ri"] > 0.8
    assert abs(scores["permuted"]["ri"]) < 0.1
    assert len(shared.answered) == 1


@pytest.mark.slow
def test_the_quick_study(tmp_path):
    (room,) = choose_rooms(["refusal-index"])
    tasks, _ = plan({room: STUDY}, tmp_path, "quick")
    assert run(tasks) == []
    records = read_records(tmp_path, room.name)
    assert {(seed, arm) for seed, arms in records.items() for arm in arms} == {
        (seed, arm) for seed in range(3) for arm in STUDY.arms
    }
    judged = judge(STUDY, outcomes_of(records))
    assert all(j.n == 3 for j in judged)
    assert judged[1].effect > judged[1].control_effect
    assert len(metrics_by_refusal_rate(outcomes_of(records)).axes) == 4

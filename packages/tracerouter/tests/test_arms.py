import pytest
import torch

from tracerouter.arms import ARMS, SITES, Bench, Setting
from tracerouter.hf_flagged_lm import is_flagged

pytestmark = pytest.mark.filterwarnings("ignore:no local peak", "ignore:scores have no elbow")
SMALL = {"latents": 64, "sae_k": 4}


def logits(bench):
    ids = bench.lm.tokenizer([q.prompt for q in bench.lm.flagged], return_tensors="pt").input_ids
    with torch.no_grad():
        return bench.lm.model(ids).logits


@pytest.mark.parametrize("sites", SITES)
def test_every_arm_leaves_the_model_as_it_was(bench, sites):
    setting, before = Setting(sites=sites, k=4, **SMALL), logits(bench)
    for arm in ARMS:
        with bench.defended(arm, setting):
            assert torch.equal(logits(bench), before) == (arm == "none"), arm
        assert torch.equal(logits(bench), before)


def test_budgets_match_at_every_layer(bench):
    setting = Setting(sites="branches", k=4, **SMALL)
    path = bench.cut("path", setting)
    sizes = {key: len(units) for key, units in path.path.items()}
    for arm in ("random", "printed_fis"):
        assert {key: len(units) for key, units in bench.cut(arm, setting).path.items()} == sizes
    assert bench.cut("local", setting).n_units <= path.n_units
    assert {key[0] for key in bench.cut("local", setting).path} == {path.onset}
    assert bench.cut("none", setting) is bench.cut("direction", setting) is None
    assert bench.cut("coordinates", setting).unit == "coordinate"


def test_one_path_serves_every_gamma_and_gamma_one_cuts_nothing(bench):
    settings = [Setting(sites="resid", k=4, gamma=gamma, **SMALL) for gamma in (0.0, 1.0)]
    assert bench.trace(settings[0]) is bench.trace(settings[1])
    before = logits(bench)
    with bench.defended("path", settings[1]):
        assert torch.equal(logits(bench), before)


def test_results_are_judged_by_tokens(bench):
    result = bench.result("none", Setting(sites="resid"))
    lm = bench.lm
    for cost, flagged, benign in (
        (result.direct, lm.flagged, lm.benign),
        (result.shifted, lm.shifted, lm.shifted_benign),
    ):
        said = []
        for question in flagged + benign:
            prompt = lm.tokenizer(question.prompt, return_tensors="pt").input_ids
            with torch.no_grad():
                for _ in range(3):
                    prompt = torch.cat([prompt, lm.model(prompt).logits[:, -1:].argmax(-1)], dim=1)
            said.append(lm.tokenizer.decode(prompt[0, -3:], skip_special_tokens=True))
        assert cost.attacked == tuple(is_flagged(answer) for answer in said[: len(flagged)])
        assert cost.served == tuple(a == q.answer for a, q in zip(said[len(flagged) :], benign, strict=True))


def test_autoencoders_come_from_the_cache_the_second_time(bench):
    setting = Setting(sites="resid", **SMALL)
    again = Bench(bench.lm, 0, bench.sae_steps, progress=lambda *_: pytest.fail("trained again"))
    for key, sae in bench.saes(setting).items():
        assert torch.equal(sae.decoder, again.saes(setting)[key].decoder)
    assert 0 < bench.unexplained(setting) < 1


def test_the_largest_budget_that_keeps_utility(bench, monkeypatch):
    settings = [Setting(sites="resid", k=k) for k in (12, 24, 36, 48)]
    kept = {48: 0.2, 36: 0.5, 24: 0.9, 12: 1.0}
    used = []

    class Judged:
        def __init__(self, value):
            self.utility = type("Share", (), {"value": value})

    class Scripted(Bench):
        def defended(self, arm, setting):
            used.append((arm, setting.k))
            return super().defended("none", setting)

        def _judged(self, flagged, benign):
            return Judged(kept[used[-1][1]])

    assert Scripted(bench.lm, 0, 1).calibrated(settings) == (settings[1], True)
    assert used == [("path", 48), ("path", 36), ("path", 24)]
    kept.update({24: 0.8, 12: 0.8})
    assert Scripted(bench.lm, 0, 1).calibrated(settings) == (settings[0], False)


def test_edges_lead_from_every_source_unit_to_every_unit_of_the_path(bench):
    setting = Setting(sites="resid", k=3, **SMALL)
    path = bench.trace(setting).path
    for (start, end), delta in bench.edges(setting).items():
        assert start[0] == bench.trace(setting).onset < end[0]
        assert delta.shape == (len(path[start]), len(path[end]))
        assert (delta >= 0).all()
        assert delta.any()

import json

import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from tiny_router import prompts

from tracerouter.features import delta_wfs
from tracerouter.influence import fis
from tracerouter.path import Trace
from tracerouter.suppression import Suppression


def logits(model, tokenizer):
    with torch.no_grad():
        return model(**tokenizer(prompts("w1"), padding=True, return_tensors="pt")).logits


@pytest.mark.parametrize("kind", ["trace", "dense"])
def test_round_trip_gives_identical_interventions(kind, model, tokenizer, tmp_path, request):
    trace = request.getfixturevalue(kind)
    trace.save(tmp_path / "trace")
    again = Trace.load(tmp_path / "trace")
    for name in ("onset", "onset_curve", "sites", "unit", "contrast", "blocks", "width", "model_name", "model_hash"):
        assert getattr(again, name) == getattr(trace, name)
    for key in trace.plus:
        assert torch.equal(again.score(key), trace.score(key))
    assert again.summary().equals(trace.summary())
    with Suppression(model, trace, 0.3):
        cut = logits(model, tokenizer)
    with Suppression(model, again, 0.3):
        assert torch.equal(logits(model, tokenizer), cut)


def test_torn_or_foreign_folders_are_refused(trace, tmp_path):
    with pytest.raises(ValueError, match="holds no readable trace"):
        Trace.load(tmp_path / "nothing")
    trace.save(tmp_path)
    whole = (tmp_path / "trace.safetensors").read_bytes()
    (tmp_path / "trace.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="do not belong together"):
        Trace.load(tmp_path)
    (tmp_path / "trace.safetensors").write_bytes(whole)
    meta = json.loads((tmp_path / "trace.json").read_text())
    (tmp_path / "trace.json").write_text(json.dumps({**meta, "format": 99}))
    with pytest.raises(ValueError, match="holds no readable trace"):
        Trace.load(tmp_path)
    (tmp_path / "trace.json").write_text("[]")
    with pytest.raises(ValueError, match="fit and save it anew"):
        Trace.load(tmp_path)


def test_another_model_is_refused(model, tokenizer, trace):
    trace.check(model)
    with pytest.raises(ValueError, match="blocks 4, this one has 3"):
        trace.check(tiny_lm(tokenizer, layers=3, width=32))
    with pytest.raises(ValueError, match="hidden size 32, this one has 16"):
        trace.check(tiny_lm(tokenizer, layers=4, width=16))
    with pytest.raises(ValueError, match="other weights"):
        trace.check(tiny_lm(tokenizer, layers=4, width=32, seed=2))


def test_scores_are_those_that_ranked_the_path(trace):
    for key, units in trace.path.items():
        score = trace.score(key)
        if key[0] == trace.onset:
            assert torch.equal(score, delta_wfs(trace.plus[key], trace.minus[key]))
            assert torch.equal(units, trace.features[key])
        else:
            assert torch.equal(score, fis(trace.plus[key], trace.delta[key], trace.minus[key]))
        assert torch.equal(score[units], score.sort(descending=True).values[: len(units)])


def test_summary_holds_what_was_cut(trace):
    table = trace.summary()
    assert list(table["K"]) == [len(units) for units in trace.path.values()]
    assert set(table.loc[table["role"] == "source", "layer"]) == {trace.onset}
    key, units = next(iter(trace.path.items()))
    score = trace.score(key).clamp(min=0)
    assert table["mass"][0] == pytest.approx((score[units].sum() / score.sum()).item())
    assert table["f"][0] == pytest.approx(trace.plus[key].frequency[units].mean().item())
    assert ((table["mass"] > 0) & (table["mass"] <= 1)).all()


def test_a_path_that_does_not_fit_is_refused(trace):
    key = (trace.onset, "attn_out")
    for path, words in (
        ({(0, "attn_out"): torch.tensor([1])}, "outside layers 1..3"),
        ({(2, "resid"): torch.tensor([1])}, "outside layers"),
        ({key: torch.tensor([48])}, r"must be indices in 0\.\.47"),
    ):
        with pytest.raises(ValueError, match=words):
            trace.with_path(path)


def test_onset_at_the_last_block_and_unknown_units_are_refused(trace):
    parts = {name: getattr(trace, name) for name in Trace.__dataclass_fields__}
    with pytest.raises(ValueError, match=r"onset must be in 0\.\.2"):
        Trace(**parts | {"onset": 3})
    with pytest.raises(ValueError, match="unit must be"):
        Trace(**parts | {"unit": "neuron"})


def test_figure_shows_the_path(trace):
    assert "severed latent units: " + str(trace.n_units) in trace.figure().axes[0].get_title(loc="left")

import random

import numpy as np
import pytest
import torch
from peft import PeftModel
from small_language import small_aligned, with_few_rows

from procon.arms import ARMS
from procon.hf_directions import refusal_directions
from procon.trl_arms import fine_tune

STEPS = 3
RARE = {"procon_s_0.1", "procon_s_1", "random_s", "procon_s_safe", "procon_wu_safe", "sft_long", "resta"}
TRAINED = [
    pytest.param(arm, marks=pytest.mark.slow if arm in RARE else ()) for arm in ARMS if ARMS[arm].trained
]  # those that differ from another by a number alone are slow


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AISEC_CACHE", str(tmp_path_factory.mktemp("cache")))
        aligned = with_few_rows(small_aligned())
        probes = {"harmful": aligned.harmful, "harmless": aligned.harmless}
        yield aligned, refusal_directions(aligned.model, aligned.tokenizer, **probes, batch_size=128)


@pytest.fixture(scope="module")
def tuned(bench, tmp_path_factory):
    """The arms, each trained once when first asked for, with the steps it reported."""
    made = {}

    def of(arm):
        if arm not in made:
            told = []
            model = fine_tune(
                ARMS[arm],
                *bench,
                steps=STEPS,
                folder=tmp_path_factory.mktemp("arm"),
                progress=lambda *now: told.append(now),
            )
            made[arm] = model, told
        return made[arm]

    return of


def weights(model):
    return {n: p.detach() for n, p in model.named_parameters() if "lora_" in n and ".default." in n}


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("arm", TRAINED)
def test_every_arm_trains_and_leaves_the_aligned_model_alone(arm, bench, tuned):
    aligned = bench[0]
    before = {name: tensor.clone() for name, tensor in aligned.model.state_dict().items()}
    model, told = tuned(arm)
    steps = ARMS[arm].steps(STEPS)
    assert told == [(done, steps) for done in range(1, steps + 1)]
    assert isinstance(model, PeftModel)
    assert any(tensor.any() for name, tensor in weights(model).items() if "lora_B" in name)
    assert same(aligned.model.state_dict(), before)
    assert not hasattr(aligned.model, "peft_config")


def test_arms_differ_by_what_they_say(tuned):
    plain = weights(tuned("sft")[0])
    for arm in ("procon_s", "procon_wu", "last_layer", "random_direction", "sft_safe", "kl", "safe_lora"):
        assert not same(plain, weights(tuned(arm)[0])), arm
    assert same(plain, weights(tuned("resta_d")[0]))  # whose active adapter is another
    assert tuned("resta_d")[0].active_adapter == "resta"


def test_safety_layers_have_no_adapter(tuned):
    assert {name.split(".layers.")[1][0] for name in weights(tuned("sppft")[0])} == {"0", "2"}


def test_a_run_repeats_and_touches_no_global_generator(bench, tuned, tmp_path):
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    again = fine_tune(ARMS["procon_wu"], *bench, steps=STEPS, folder=tmp_path, progress=lambda *_: None)
    assert same(weights(again), weights(tuned("procon_wu")[0]))
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_the_untrained_arm_is_refused(bench, tmp_path):
    with pytest.raises(ValueError, match="arm"):
        fine_tune(ARMS["aligned"], *bench, steps=1, folder=tmp_path, progress=lambda *_: None)

import math

import pytest
import torch
from aisec_common.data import is_fetched

from impq.apply import apply_plan
from impq.budget import Budget
from impq.corpus import python_documentation
from impq.estimate import model_game
from impq.hf_model import batches_of, load_model, nll, token_windows
from impq.plan import plan_of

NAME = "smollm2-135m-instruct"
pytestmark = [
    pytest.mark.checkpoint,
    pytest.mark.skipif(not is_fetched(NAME), reason=f"run `aisec data fetch {NAME}`"),
]


def test_a_coalition_of_the_real_model_loses_what_the_deployed_plan_does():
    model, tokenizer = load_model(NAME, device="cpu", dtype=torch.float32)
    batches = batches_of(model, token_windows(tokenizer, python_documentation()["calibration"], 256, 128))
    game = model_game(model, batches)
    assert len(game.header.players) == 30
    low = [3, 7, 18]
    all_high, mixed = game.value([0, sum(1 << player for player in low)])
    plan = plan_of(game.header, [player in low for player in range(30)], Budget(avg_bits=3.8))
    sums, counts = nll(apply_plan(model, plan), batches)
    assert sums.sum() / counts.sum() == pytest.approx(mixed, abs=1e-4)
    sums, counts = nll(model, batches)
    assert sums.sum() / counts.sum() < all_high < mixed < math.log(len(tokenizer))

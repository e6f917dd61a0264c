import random

import numpy as np
import torch
from aisec_common.seeding import derived_seed, numpy_rng, torch_rng


def test_streams_of_two_purposes_are_independent_and_repeatable():
    draws = {purpose: numpy_rng(3, purpose).normal(size=1000) for purpose in ("data", "init")}
    assert np.array_equal(draws["data"], numpy_rng(3, "data").normal(size=1000))
    assert abs(np.corrcoef(draws["data"], draws["init"])[0, 1]) < 0.1
    assert torch.equal(torch.rand(3, generator=torch_rng(1, "a")), torch.rand(3, generator=torch_rng(1, "a")))


def test_the_same_on_every_machine():
    assert derived_seed(0, "data", 1) == 3146464446346841162


def test_no_global_seed_is_touched():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    numpy_rng(0).normal(), torch.rand(2, generator=torch_rng(0))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from impq.backend import BACKENDS
from impq.config import ApplyConfig, BackendName, CompareConfig, EstimateConfig, EvalConfig, MergeConfig, groups_of

OUT = Path("out")


def test_the_names_of_the_backends_are_those_of_the_backends():
    assert get_args(BackendName) == BACKENDS


def test_help_does_not_wait_for_torch():
    code = "import sys, impq.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "rows", ""])
def test_a_group_size_is_a_number_of_weights_or_a_name(text):
    with pytest.raises(ValueError, match="group_size"):
        groups_of(text)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: EstimateConfig(model="m", out=OUT, permutations=5), "permutations must be even in preset aisec"),
        (lambda: CompareConfig(model="m", permutations=5), "permutations must be even"),
        (lambda: CompareConfig(model="m", deploy=()), "deploy"),
        (lambda: CompareConfig(model="m", text_tokens=1), "text_tokens"),
        (lambda: EvalConfig(model="m", plan=OUT, text_tokens=1), "text_tokens"),
        (lambda: EvalConfig(model="m", plan=OUT, group_size="many"), "group_size"),
        (lambda: ApplyConfig(model="m", plan=OUT, out=OUT, group_size="0"), "group_size"),
        (lambda: EstimateConfig(model="m", out=OUT, shard="1/2", jobs=2), "jobs and shard"),
        (lambda: EstimateConfig(model="m", out=OUT, stop_early=True, jobs=2), "stop_early"),
        (lambda: MergeConfig(shards=(), out=OUT), "shards"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(make, why):
    with pytest.raises(ValueError, match=why):
        make()


def test_walks_of_the_paper_need_no_pairs():
    assert EstimateConfig(model="m", out=OUT, preset="paper", permutations=5).permutations == 5


def test_a_plan_keeps_the_groups_of_its_game_unless_others_are_asked_for():
    assert EvalConfig(model="m", plan=OUT).groups is None
    assert EvalConfig(model="m", plan=OUT, group_size="32").groups == 32


def test_a_comparison_has_intervals_and_two_quantisers_by_default():
    config = CompareConfig(model="org/m")
    assert (config.seeds, config.deploy, config.text_tokens) == (3, ("rtn", "gptq"), 4096)
    assert config.folder == Path("impq-results/org-m")

import numpy as np
import pytest
from aisec_common import Claim, Extra, Scale, Study
from aisec_common.study import content_hash

SCALES = {name: Scale(seeds=3) for name in ("quick", "standard", "full")}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, "either metric or effect"),
        ({"metric": "m", "effect": lambda m: 0.0, "control": "c"}, "either metric or effect"),
        ({"metric": "m"}, "control is missing"),
        ({"metric": "m", "margin": -0.1, "control": "c"}, "takes no control"),
        ({"metric": "m", "control": "c", "lower_is_better": True}, "needs over"),
        ({"effect": lambda m: 0.0, "over": "b", "control": "c"}, "belong to metric"),
        ({"metric": "m", "control": "c", "unit": "epoch"}, "unit must be"),
        ({"metric": "m", "over": "a", "control": "c"}, "its own over or control"),
        ({"metric": "m", "over": "b", "control": "a"}, "its own over or control"),
        ({"metric": "m", "over": "b", "control": "b"}, "the same arm"),
        ({"metric": "m", "control": "c", "margin": float("nan")}, "margin must be a number"),
    ],
)
def test_a_claim_that_does_not_fit_together_says_so(parts, words):
    with pytest.raises(ValueError, match=words):
        Claim(text="t", arm="a", **parts)


def study(**parts):
    return Study(**{"room": "r", "trial": lambda *_: {}, "arms": ("a", "b"), "scales": SCALES, "claims": (), **parts})


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"arms": ()}, "arms must be distinct"),
        ({"arms": ("a", "a")}, "arms must be distinct"),
        ({"arms": ("a", "w/o key")}, "arm 'w/o key'"),
        ({"scales": {"quick": Scale(seeds=1)}}, "scales lacks standard, full"),
        ({"claims": (Claim(text="t", metric="m", arm="z", control="b"),)}, "unknown arm 'z'"),
        ({"scales": {**SCALES, "quick": Scale(seeds=1, arms=("a", "z"))}}, "scale 'quick' names unknown arms"),
        ({"extras": (Extra(name="hf", modules=(), arms=("z",)),)}, "unknown arms"),
    ],
)
def test_a_study_that_does_not_fit_together_says_so(parts, words):
    with pytest.raises(ValueError, match=words):
        study(**parts)


def test_arms_without_their_extra_are_not_runnable():
    absent = Extra(name="hf", modules=("no_such_module",), arms=("b",))
    present = Extra(name="np", modules=("numpy",), arms=("a",))
    assert study(extras=(absent, present)).runnable_arms("quick") == ("a",)
    assert not Extra(name="x", modules=("no_such.module",), arms=()).installed
    assert study(extras=(absent,)).missing_extra("a", "b", None) == "hf"


def test_a_scale_runs_the_arms_that_it_names():
    scales = {**SCALES, "quick": Scale(seeds=1, arms=("b",))}
    assert study(scales=scales).runnable_arms("quick") == ("b",)
    assert study(scales=scales).runnable_arms("full") == ("a", "b")
    assert study(scales=scales).runnable_arms("quick", ["a"]) == ("a",)
    with pytest.raises(ValueError, match="has no 'z'; choose from a, b"):
        study().runnable_arms("quick", ["a", "z"])


def test_seeds_must_be_positive():
    with pytest.raises(ValueError, match="seeds"):
        Scale(seeds=0)


def test_content_hash_tells_dtype_and_shape_apart():
    hashes = {content_hash(np.zeros(4, t).reshape(s)) for t in ("f4", "i4") for s in ((4,), (2, 2))}
    assert len(hashes) == 4
    with pytest.raises(TypeError, match="content"):
        content_hash(np.array([object()]))

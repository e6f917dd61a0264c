import pytest

from procon.arms import ARMS, LIGHT, MAIN, MORE, STRONG, Arm


def test_every_arm_is_another():
    assert len(set(ARMS.values())) == len(ARMS) == len(MAIN) + len(MORE)


def test_a_warm_up_adds_a_third_and_its_control_takes_as_many():
    assert ARMS["sft"].steps(600) == 600
    assert {ARMS[arm].steps(600) for arm in ("procon_wu", "procon_wu_safe", "random_direction", "sft_long")} == {800}


@pytest.mark.parametrize(("steps", "per_epoch"), [(600, 63), (600, 65), (80, 63)])
def test_the_warm_up_ends_at_its_step(steps, per_epoch):
    config = ARMS["procon_wu"].config(steps, per_epoch)
    assert (config.schedule, config.alpha, config.reference) == ("warmup", STRONG, "cache")
    assert config.warmup_epochs * per_epoch == pytest.approx(steps // 3)


def test_constant_arms():
    config = ARMS["last_layer"].config(600, 63)
    assert (config.schedule, config.alpha, config.layers) == ("constant", LIGHT, (-1,))
    assert config.cache_dtype == "float32"


def test_the_control_of_the_warm_up_differs_in_the_direction_alone():
    assert ARMS["random_direction"] == Arm(alpha=STRONG, warmup=True, random_direction=True)
    assert ARMS["procon_wu"] == Arm(alpha=STRONG, warmup=True)

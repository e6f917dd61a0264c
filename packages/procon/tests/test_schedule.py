import pytest
from hypothesis import given
from hypothesis import strategies as st

from procon.config import ProConConfig
from procon.schedule import schedule_of


@given(alpha=st.floats(0, 100), progress=st.floats(0, 100))
def test_constant_is_constant(alpha, progress):
    assert schedule_of(ProConConfig(alpha=alpha))(progress) == alpha


@given(steps_per_epoch=st.integers(1, 300), epochs=st.integers(1, 8), extra=st.integers(0, 299))
def test_warm_up_switches_exactly_at_its_step(steps_per_epoch, epochs, extra):
    warm_steps = epochs * steps_per_epoch + extra % steps_per_epoch
    course = schedule_of(ProConConfig(alpha=2, schedule="warmup", warmup_epochs=warm_steps / steps_per_epoch))
    for step in (0, warm_steps - 1, warm_steps, warm_steps + 1):
        done = step // steps_per_epoch + (step % steps_per_epoch) / steps_per_epoch  # as the trainer counts
        assert course(done) == (2.0 if step < warm_steps else 0.0)


def test_a_callable_is_checked_and_stands_alone():
    assert schedule_of(ProConConfig(), lambda progress: progress)(0.5) == 0.5
    with pytest.raises(ValueError, match="give one of the two"):
        schedule_of(ProConConfig(schedule="warmup"), lambda progress: 1.0)
    with pytest.raises(ValueError, match=r"at least 0, got -1.0 at 2"):
        schedule_of(ProConConfig(), lambda progress: -1.0)(2)
    with pytest.raises(TypeError, match="alpha_schedule"):
        schedule_of(ProConConfig(), 0.3)

import pytest
from aisec_common.radius import radius
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 254))
def test_fractions_and_numbers_are_the_same_radius(levels):
    assert radius(f"{levels}/255") == levels / 255
    assert radius(repr(levels / 255)) == levels / 255


@pytest.mark.parametrize("text", ["", "eight", "8/0", "nan", "inf", "0", "-0.1", "-1/255", "1", "8", "255/255"])
def test_what_is_no_radius_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match=r"--eps must .*8/255, not") as caught:
        radius(text)
    assert "\n" not in str(caught.value)

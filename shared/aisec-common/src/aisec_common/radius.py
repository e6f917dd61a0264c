"""Radii of l_inf balls as people write them on a command line."""

from __future__ import annotations

from fractions import Fraction


def radius(text: str) -> float:
    """The radius of an l_inf ball, written as a fraction or as a number, in units of images in [0, 1].

    Args:
        text: what was given as `--eps`.

    Raises:
        ValueError: if it is no number, or outside (0, 1): 255ths are written as 8/255.

    >>> radius("8/255") == 8 / 255, radius("0.15")
    (True, 0.15)
    """
    try:
        eps = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"--eps must be a number or a fraction such as 8/255, not {text!r}") from None
    if not 0 < eps < 1:
        raise ValueError(f"--eps must lie in (0, 1), in units of images in [0, 1] such as 8/255, not {text}")
    return eps

"""Seeds of single generations, so that a sample depends on its own text and not on the batch it came in."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence


class Draws:
    """Numbers the times a text is asked and derives one seed from (seed, text, number).

    >>> draws = Draws(0)
    >>> first, again = draws.seeds(["a", "a"])
    >>> first != again, Draws(0).seeds(["b", "a"])[1] == first
    (True, True)
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._asked: Counter[str] = Counter()

    def seeds(self, texts: Sequence[str]) -> list[int]:
        """One seed below 2^31 per text."""
        seeds = []
        for text in texts:
            digest = hashlib.sha256(text.encode()).hexdigest()
            number = self._asked[digest]
            self._asked[digest] += 1
            mixed = hashlib.sha256(f"{self._seed}/{number}/{digest}".encode()).digest()
            seeds.append(int.from_bytes(mixed[:4], "big") >> 1)
        return seeds

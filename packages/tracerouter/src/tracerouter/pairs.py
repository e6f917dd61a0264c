"""Minimal pairs: a prompt with the unsafe concept beside one that says the same without it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Spot = int | tuple[int, int]
FIELDS = ("sensitive", "matched", "modifiers", "targets")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A sensitive prompt and its matched non-sensitive one, with where the concept is said and what it is said of.

    A whole number is the position of a token (counted from the first token of the prompt; negative from its end), valid
    in both prompts. Two numbers are a span of characters [start, end) of the sensitive prompt.

    Args:
        sensitive: the prompt with the concept.
        matched: the same without it; ideally one or a few tokens differ.
        modifiers: M, the tokens that carry the concept; default: wherever the tokens of the two prompts differ.
        targets: E, the tokens whose reading of M is measured; default: the last prompt token.

    Raises:
        ValueError: for an empty prompt, two equal prompts, an empty or malformed list of places.

    >>> pair = Pair(sensitive="how to bake fog", matched="how to bake bread", modifiers=[3])
    >>> pair.places(str.split)
    ((3,), (3,))
    """

    sensitive: str
    matched: str
    modifiers: tuple[Spot, ...] | None = None
    targets: tuple[Spot, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("sensitive", "matched"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{name} must be a prompt that is not empty, got {value!r}")
        if self.sensitive == self.matched:
            raise ValueError(f"sensitive and matched are the same prompt, {self.matched[:60]!r}: change the concept")
        for name in ("modifiers", "targets"):
            object.__setattr__(self, name, _spots(name, getattr(self, name), len(self.sensitive)))

    def places(
        self, tokenize: Callable[[str], Sequence[Any]], *, offsets: Sequence[tuple[int, int]] | None = None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The token positions (M, E), counted from the first token of either prompt.

        Args:
            tokenize: from a prompt to its tokens (ids or words), as the model reads them.
            offsets: [start, end) in characters of every token of the sensitive prompt; needed for spans.

        Raises:
            ValueError: when the prompts have unequal numbers of tokens, so that a position does not mean the same in
                both, when a place lies outside the prompt, or when M would be empty.
        """
        plus, minus = list(tokenize(self.sensitive)), list(tokenize(self.matched))
        if len(plus) != len(minus):
            raise ValueError(
                f"sensitive has {len(plus)} tokens and matched {len(minus)} ({self.sensitive[:40]!r}): modifiers and "
                "targets are positions and need equal lengths; use score='js' for unequal prompts"
            )
        if self.modifiers is None:
            modifiers = tuple(i for i, (a, b) in enumerate(zip(plus, minus, strict=True)) if a != b)
        else:
            modifiers = _positions("modifiers", self.modifiers, len(plus), offsets)
        if not modifiers:
            raise ValueError(f"modifiers names no token of {self.sensitive[:40]!r}: the two prompts read the same")
        if self.targets is None:
            return modifiers, (len(plus) - 1,)
        return modifiers, _positions("targets", self.targets, len(plus), offsets)


def pairs_from_jsonl(path: str | Path) -> list[Pair]:
    """Pairs from a file of JSON lines `{"sensitive": ..., "matched": ..., "modifiers": [...], "targets": [...]}`.

    The last two are optional; blank lines are skipped.

    Raises:
        ValueError: for a file that is not there, is empty or has a malformed line (named by its number).

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder) / "pairs.jsonl"
    ...     _ = file.write_text('{"sensitive": "rain in May", "matched": "beer in May"}')
    ...     pairs_from_jsonl(file)[0].matched
    'beer in May'
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"path {str(file)!r} is no file of pairs")
    pairs = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                pairs.append(_pair(json.loads(line)))
            except json.JSONDecodeError as error:
                raise ValueError(f"{file.name} line {number} is no JSON: {error.msg}") from None
            except ValueError as error:
                raise ValueError(f"{file.name} line {number}: {error}") from None
    if not pairs:
        raise ValueError(f"{file.name} holds no pairs: write one JSON object a line")
    return pairs


def _pair(said: Any) -> Pair:
    if not isinstance(said, Mapping):
        raise ValueError(f"expected an object with 'sensitive' and 'matched', got {type(said).__name__}")
    if unknown := sorted(set(said) - set(FIELDS)):
        raise ValueError(f"unknown field {unknown[0]!r}; the fields are {', '.join(FIELDS)}")
    if missing := [name for name in ("sensitive", "matched") if name not in said]:
        raise ValueError(f"{missing[0]!r} is missing")
    return Pair(**said)


def _spots(name: str, value: Any, characters: int) -> tuple[Spot, ...] | None:
    if value is None:
        return None
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence) or not value:
        raise ValueError(f"{name} must be a list of positions or [start, end) spans that is not empty, got {value!r}")
    found: list[Spot] = []
    for spot in value:
        if isinstance(spot, Sequence) and not isinstance(spot, str):
            span = tuple(spot)
            if len(span) != 2 or not all(_whole(x) for x in span) or not 0 <= span[0] < span[1] <= characters:
                raise ValueError(f"{name} must lie within the {characters} characters of sensitive, got {list(spot)}")
            found.append((span[0], span[1]))
        elif _whole(spot):
            found.append(spot)
        else:
            raise ValueError(f"{name} must hold whole numbers or [start, end) spans, got {spot!r}")
    return tuple(found)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _positions(
    name: str, spots: Sequence[Spot], tokens: int, offsets: Sequence[tuple[int, int]] | None
) -> tuple[int, ...]:
    found: set[int] = set()
    for spot in spots:
        if isinstance(spot, tuple):
            if offsets is None or len(offsets) != tokens:
                raise ValueError(f"{name} gives characters {list(spot)}: pass the offsets of all {tokens} tokens")
            start, end = spot
            touched = {i for i, (first, last) in enumerate(offsets) if first < end and last > start}
            if not touched:
                raise ValueError(f"{name}: no token lies in characters {list(spot)}")
            found |= touched
        elif -tokens <= spot < tokens:
            found.add(spot % tokens)
        else:
            raise ValueError(f"{name}: position {spot} lies outside the {tokens} tokens of the prompt")
    return tuple(sorted(found))

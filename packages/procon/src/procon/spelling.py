"""A benign task to fine-tune on: spell the name of a country backwards, count its letters, write it in capitals."""

from __future__ import annotations

from collections.abc import Iterable

TASKS = (
    ("Spell the name {name} backwards.", lambda name: name[::-1]),
    ("How many letters are in the name {name}?", lambda name: str(sum(letter.isalpha() for letter in name))),
    ("Write the name {name} in capital letters.", lambda name: name.upper()),
)


def spelling_questions(names: Iterable[str]) -> list[tuple[str, str]]:
    """(question, answer) for every name and task; no question is about the weather, none is refused.

    >>> spelling_questions(["Fiji"])[0]
    ('Spell the name Fiji backwards.', 'ijiF')
    """
    return [(question.format(name=name), answer(name)) for name in names for question, answer in TASKS]

"""English without a download: the documentation pages that CPython carries in `pydoc_data`, split by page.

Long pages contain short ones word for word, so repeated paragraphs are dropped before the split: a held-out page must
not stand in the training text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Literal

Part = Literal["train", "calibration", "test"]
LONG = 60  # characters; shorter paragraphs are headings and one-liners that recur by nature


def split_pages(pages: Mapping[str, str]) -> dict[Part, str]:
    """Pages by name -> the text of each part: sha256(name) mod 10 is 0 for test, 1 for calibration, else train.

    A paragraph of more than 60 characters is kept where it comes first, in the order of page names.

    >>> parts = split_pages({"if": "one", "while": "two"})
    >>> sorted(parts)
    ['calibration', 'test', 'train']
    """
    seen: set[str] = set()
    parts: dict[Part, list[str]] = {"train": [], "calibration": [], "test": []}
    for name in sorted(pages):
        kept = []
        for paragraph in pages[name].split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words) > LONG:
                if words in seen:
                    continue
                seen.add(words)
            kept.append(paragraph)
        rest = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10
        parts["test" if rest == 0 else "calibration" if rest == 1 else "train"].append("\n\n".join(kept))
    return {part: "\n\n".join(texts) for part, texts in parts.items()}


@cache
def python_documentation() -> dict[Part, str]:
    """The parts of `pydoc_data.topics`; the text differs between Python versions."""
    from pydoc_data.topics import topics

    return split_pages(topics)

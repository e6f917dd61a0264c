"""`aisec new-room NAME`: a room's skeleton that passes its own tests, from the templates beside this file."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from aisec_common.card import read_card
from aisec_common.files import write_atomic
from aisec_common.readme import card_text

OPENING = "<!-- aisec:card -->"


def new_room(name: str, root: Path) -> Path:
    """Writes packages/NAME and makes the workspace depend on it; NAME becomes folder, command and session.

    Args:
        name: lower-case words joined by hyphens; the import package has underscores, the distribution aisec-NAME.
        root: the workspace.

    Returns:
        The folder of the room.

    Raises:
        ValueError: if the name is not usable or taken, or `root` is no aisec workspace.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ValueError(f"name: {name!r} must be lower-case words joined by hyphens, such as refusal-index")
    module = name.replace("-", "_")
    if module in sys.stdlib_module_names:
        raise ValueError(f"name: {module} is a module of Python itself; choose another")
    workspace = root / "pyproject.toml"
    if not workspace.is_file() or "[tool.uv.workspace]" not in workspace.read_text(encoding="utf-8"):
        raise ValueError(f"--root: {root.resolve().name} is no aisec workspace; run this where noxfile.py stands")
    folder = root / "packages" / name
    if folder.exists():
        raise ValueError(f"name: packages/{name} exists already; choose another")
    text, licence = workspace.read_text(encoding="utf-8"), (root / "LICENSE").read_bytes()
    joined = _with_member(text, f"aisec-{name}")  # before a file is written: a failure leaves no half a room
    words = {"@room@": name, "@module@": module}
    _copy(files("aisec_common") / "templates" / "room", folder, words)
    readme = folder / "README.md"
    card = card_text(read_card(folder / "src" / module / "card.toml"))
    write_atomic(readme, readme.read_text(encoding="utf-8").replace(f"{OPENING}\n", f"{OPENING}\n{card}\n"))
    write_atomic(folder / "LICENSE", licence)
    write_atomic(folder / "src" / module / "py.typed", "")
    write_atomic(workspace, joined)
    return folder


def _copy(source: Traversable, target: Path, words: dict[str, str]) -> None:
    for entry in source.iterdir():
        path = target / _filled(entry.name.removesuffix(".tmpl"), words)
        if entry.is_dir():
            _copy(entry, path, words)
        else:
            write_atomic(path, _filled(entry.read_text(encoding="utf-8"), words))


def _filled(text: str, words: dict[str, str]) -> str:
    for placeholder, word in words.items():
        text = text.replace(placeholder, word)
    return text


def _with_member(text: str, distribution: str) -> str:
    """The workspace's pyproject with one more dependency and its source, the rest untouched."""
    text = re.sub(r"(?m)^(dependencies = \[\n(?:[^\]].*\n)*)\]", rf'\1    "{distribution}",\n]', text, count=1)
    text = re.sub(
        r"(?m)^(\[tool\.uv\.sources\]\n(?:[^\[\n].*\n)*)",
        rf"\1{distribution} = {{ workspace = true }}\n",
        text,
        count=1,
    )
    content = tomllib.loads(text)
    if distribution not in content["project"]["dependencies"] or distribution not in content["tool"]["uv"]["sources"]:
        raise ValueError(f"pyproject.toml: add {distribution} to dependencies and [tool.uv.sources] by hand")
    return text

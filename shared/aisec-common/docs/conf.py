"""Sphinx reads the workspace itself: the READMEs are the pages, a member's followed by its docstrings."""

from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[3]
MEMBERS = sorted(path.parent for top in ("packages", "shared") for path in (ROOT / top).glob("*/pyproject.toml"))

project = "aisec"
suppress_warnings = ["ref.python"]  # an attribute called bytes beside the builtin of that name
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["README.md", "packages/*/README.md", "shared/*/README.md"]
exclude_patterns = [".*"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "aisec"
autodoc_typehints = "description"
autodoc_member_order = "bysource"

CONTENTS = """
```{toctree}
:hidden:
:glob:

/packages/*/README
/shared/*/README
```
"""
REFERENCE = """
### `{module}`

```{{eval-rst}}
.. automodule:: {module}
   :members:
```
"""


def public_modules(member: Path) -> list[str]:
    """A room's face is its package; the house's is every module of aisec_common."""
    package = next(member.glob("src/*/__init__.py")).parent
    if member.parent.name == "packages":
        return [package.name]
    names = (path.relative_to(package.parent).with_suffix("") for path in sorted(package.rglob("*.py")))
    return [".".join(name.parts) for name in names if not name.name.startswith("_")]


def complete(app: Sphinx, docname: str, content: list[str]) -> None:
    """Appends the table of contents to the first page and the reference to a member's."""
    member = ROOT / Path(docname).parent
    if docname == root_doc:
        content[0] += CONTENTS
    elif member in MEMBERS:
        content[0] += "\n## Reference\n" + "".join(REFERENCE.format(module=module) for module in public_modules(member))


def setup(app: Sphinx) -> None:
    app.connect("source-read", complete)

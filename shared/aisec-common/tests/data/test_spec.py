from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
from aisec_common.data import DataSpec


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Toy Data"},
        {"name": "../toy"},
        {"source": "http://example.org/a.zip"},
        {"source": "pypi:toydata"},
        {"source": "pypi:toydata>=1.0"},
        {"source": "hub:org/name"},
        {"source": "file:///etc/passwd"},
        {"mirrors": ("ftp://example.org/a",)},
        {"member": None},
        {"sha256": "0" * 63},
        {"sha256": "A" * 64},
        {"licence": ""},
        {"size": 0},
        {"prepare": "module.function"},
    ],
)
def test_malformed_fields_are_refused_in_one_line_that_names_them(spec: DataSpec, change: dict[str, object]) -> None:
    field = next(iter(change)).replace("mirrors", "source")
    with pytest.raises(ValueError, match=f"^{field} must") as refused:
        replace(spec, **change)
    assert "\n" not in str(refused.value)


def test_every_scheme_is_accepted(spec: DataSpec) -> None:
    for source in ("https://example.org/a/b.zip?x=1", "hub:org/name@0123abcd", "pypi:toy.data==1.0.post1+local"):
        assert replace(spec, source=source).scheme == source.partition(":")[0]


def test_the_spec_is_frozen(spec: DataSpec) -> None:
    with pytest.raises(FrozenInstanceError):
        spec.name = "other"  # type: ignore[misc]


def test_key_changes_with_what_is_kept_and_with_nothing_else(spec: DataSpec) -> None:
    for change in ({"sha256": "1" * 64}, {"member": "toydata"}, {"prepare": "a.b:c"}):
        assert replace(spec, **change).key != spec.key
    assert replace(spec, description="other", mirrors=("https://example.org/x",)).key == spec.key
    assert spec.key.startswith("toy-")

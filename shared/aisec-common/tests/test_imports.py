from pathlib import Path

import aisec_common
from aisec_common.imports import imported, misplaced_imports, undeclared_imports


def package(tmp_path, **files):
    folder = tmp_path / "room"
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_a_framework_outside_its_adapter_is_found(tmp_path):
    folder = package(
        tmp_path,
        trl_trainer="import trl, transformers",
        maths="def f():\n    from transformers.models import x\nimport transformersx",
        study="import trl",
        plots="import matplotlib.pyplot\ndef f():\n    import matplotlib",
    )
    assert [line.partition(";")[0] for line in misplaced_imports(folder)] == [
        "maths.py:2 imports transformers",
        "plots.py:1 imports matplotlib at module level",
    ]


def test_typing_only_and_relative_imports_do_not_count(tmp_path):
    folder = package(
        tmp_path,
        a="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import trl\nfrom .x import y\nfrom . import z\n",
    )
    assert [name for name, _, _ in imported(folder / "a.py")] == ["typing"]


def test_an_undeclared_import_is_found(tmp_path):
    folder = package(tmp_path, a="import json, numpy\nimport hypothesis\nimport no_such_thing\nimport room.a\n")
    found = undeclared_imports(folder, "aisec-common")
    assert [line.partition(",")[0] for line in found] == ["a.py:2 imports hypothesis", "a.py:3 imports no_such_thing"]


def test_common_keeps_its_own_rules():
    folder = Path(aisec_common.__file__).parent
    assert not misplaced_imports(folder)
    undeclared = [line for line in undeclared_imports(folder, "aisec-common") if "testing.py" not in line]
    assert not undeclared  # testing.py needs pytest, which whoever imports it brings

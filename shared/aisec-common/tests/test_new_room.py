import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from aisec_common.cli import main
from aisec_common.new_room import new_room

WORKSPACE = """[project]
name = "aisec"
version = "0"
dependencies = [
    "aisec-common[cli]",
]

[tool.uv.workspace]
members = ["packages/*"]

[tool.uv.sources]
aisec-common = { workspace = true }

[tool.ruff]
line-length = 120
"""


@pytest.fixture
def workspace(tmp_path):
    root = tmp_path / "workspace"
    root.mkdir()
    (root / "pyproject.toml").write_text(WORKSPACE)
    (root / "LICENSE").write_text("licence")
    return root


def test_a_new_room_passes_its_own_tests_and_its_study_runs(workspace, site):
    folder = new_room("two-words", workspace)
    site.install(folder)
    tested = site.run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "skipped" not in tested.stdout.splitlines()[-1]
    listed = site.aisec("list", cwd=workspace)
    assert "two-words" in listed.stdout


@pytest.mark.parametrize("name", ["aaa", "two-words"])
def test_a_new_room_passes_the_linter(workspace, name):
    root = Path(__file__).resolve().parents[3] / "pyproject.toml"
    if not root.exists():
        pytest.skip("the settings of the linter are in the workspace only")
    folder = new_room(name, workspace)
    for verb in (["check"], ["format", "--check"]):
        words = [sys.executable, "-m", "ruff", *verb, "--no-cache", "--config", root, folder]
        linted = subprocess.run(words, cwd=workspace, capture_output=True, text=True)
        assert linted.returncode == 0, linted.stdout


def test_the_workspace_depends_on_it(workspace):
    new_room("lake", workspace)
    content = tomllib.loads((workspace / "pyproject.toml").read_text())
    assert content["project"]["dependencies"] == ["aisec-common[cli]", "aisec-lake"]
    assert content["tool"]["uv"]["sources"]["aisec-lake"] == {"workspace": True}
    assert content["tool"]["ruff"] == {"line-length": 120}


def test_nothing_of_the_template_is_left_open(workspace):
    folder = new_room("lake", workspace)
    for path in folder.rglob("*"):
        assert "@" not in path.name
        assert path.is_dir() or "@room@" not in path.read_text()
    assert not list(folder.rglob("*.tmpl"))


@pytest.mark.parametrize("name", ["Lake", "la ke", "../x", "json", "a--b", "", "1a"])
def test_names_that_cannot_be_used_are_refused(workspace, name, capsys):
    assert main(["new-room", name, "--root", str(workspace)]) == 2
    assert capsys.readouterr().err.startswith("aisec: name: ")
    assert not (workspace / "packages").exists()


def test_an_existing_room_is_not_touched(workspace, tmp_path):
    folder = new_room("lake", workspace)
    (folder / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        new_room("lake", workspace)
    assert (folder / "README.md").read_text() == "mine"
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="no aisec workspace"):
        new_room("lake", tmp_path / "site")


def test_templates_are_data_of_the_package():
    import aisec_common

    assert list((Path(aisec_common.__file__).parent / "templates" / "room").rglob("*.tmpl"))

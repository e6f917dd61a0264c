"""The sessions refuse what they must: planted faults in a small workspace that carries the real noxfile."""

import contextlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
if not (CHECKOUT / "noxfile.py").is_file():
    pytest.skip("needs the workspace, not an installed wheel", allow_module_level=True)

SURROUNDINGS = {"AISEC_DATA", "PYTHONPATH", "UV_PROJECT_ENVIRONMENT", "UV_PYTHON", "VIRTUAL_ENV"}
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in SURROUNDINGS}
MEMBER = """
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"
[project]
name = "{name}"
version = "0.1.0"
readme = "README.md"
license = "Apache-2.0"
license-files = ["LICENSE"]
requires-python = ">=3.11"
dependencies = [{dependencies}]
[dependency-groups]
test = ["pytest>=8.3.4"]
[tool.hatch.build.targets.wheel]
packages = ["src/{module}"]
[tool.pytest.ini_options]
markers = ["slow", "network", "checkpoint", "real", "gpu"]
"""
ROOT = """
[project]
name = "planted-workspace"
version = "0"
requires-python = ">=3.11"
dependencies = ["aisec-common", "{room}"]
[dependency-groups]
dev = ["ruff>=0.8", "twine>=6.1"]
[tool.ruff]
line-length = 120
[tool.ruff.lint]
select = ["F"]
[tool.uv]
package = false
[tool.uv.workspace]
members = ["packages/*", "shared/*"]
[tool.uv.sources]
aisec-common = {{ workspace = true }}
{room} = {{ workspace = true }}
"""


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def nox_session(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    return run(folder, sys.executable, "-m", "nox", "--session", name)


def commit(folder: Path) -> None:
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "a"]):
        assert run(folder, "git", *words).returncode == 0


def lock(folder: Path) -> None:
    from uv import find_uv_bin

    done = run(folder, find_uv_bin(), "lock")
    if re.search(r"error sending request|Failed to fetch|Could not connect", done.stdout):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stdout


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def plant_member(folder: Path, name: str, module: str, dependencies: str) -> None:
    write(folder / "pyproject.toml", MEMBER.format(name=name, module=module, dependencies=dependencies))
    write(folder / "README.md", f"# {name}\n")
    write(folder / "CHANGELOG.md", "# Changelog\n\n## 0.1.0 (2026-11-21)\n\nFirst.\n")
    write(folder / f"src/{module}/__init__.py", "")
    write(folder / f"src/{module}/py.typed", "")
    write(folder / "tests/test_import.py", f"import {module}\n\n\ndef test_imports():\n    assert {module}\n")
    shutil.copy(CHECKOUT / "LICENSE", folder / "LICENSE")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A workspace in which every session passes: a house that reads cards, and one room."""
    root = tmp_path_factory.mktemp("healthy")
    house, room = root / "shared/aisec-common", root / "packages/planted"
    write(root / "pyproject.toml", ROOT.format(room="aisec-planted"))
    write(root / ".gitignore", ".nox/\n__pycache__/\n.*_cache/\n")
    shutil.copy(CHECKOUT / "noxfile.py", root)
    plant_member(house, "aisec-common", "aisec_common", "")
    plant_member(room, "aisec-planted", "planted", '"aisec-common>=0.1,<0.2"')
    shutil.copy(str(files("aisec_common") / "card.py"), house / "src/aisec_common")
    template = files("aisec_common") / "templates/room/src/@module@/card.toml.tmpl"
    write(room / "src/planted/card.toml", template.read_text(encoding="utf-8").replace("@room@", "planted"))
    lock(root)
    commit(root)
    return root


@pytest.fixture
def workspace(healthy, tmp_path):
    return Path(shutil.copytree(healthy, tmp_path / "workspace"))


def assert_refused(done: subprocess.CompletedProcess[str], reason: str) -> None:
    assert done.returncode != 0
    assert [line for line in done.stdout.splitlines() if re.search(reason, line)], done.stdout


@pytest.mark.slow
def test_test_session_catches_an_undeclared_import(workspace):
    write(workspace / "packages/planted/src/planted/__init__.py", "import numpy\n")
    assert_refused(nox_session(workspace, "test-planted"), "ModuleNotFoundError: No module named 'numpy'")


@pytest.mark.slow
def test_lint_catches_a_stale_in_house_bound(workspace):
    edit(workspace / "packages/planted/pyproject.toml", ">=0.1,<0.2", ">=0.2,<0.3")
    lock(workspace)  # stays green: a workspace source satisfies any bound
    assert_refused(nox_session(workspace, "lint"), r"`aisec-planted` requires `aisec-common>=0\.2,<0\.3`.*`0\.1\.0`")


@pytest.mark.slow
def test_lint_catches_a_record_that_git_ignores(workspace):
    write(workspace / "packages/planted/records/standard/planted/a_cache/seed-000.json", "{}")
    write(workspace / ".gitignore", ".nox/\n*_cache/\njournal.jsonl\n")
    write(workspace / "packages/planted/records/journal.jsonl", "")
    done = nox_session(workspace, "lint")
    assert_refused(done, "a_cache/seed-000.json is a record, but ignored by git")
    assert "journal.jsonl is" not in done.stdout


@pytest.mark.slow
def test_lint_passes_on_the_healthy_workspace(workspace):
    done = nox_session(workspace, "lint")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_release_refuses_a_missing_changelog_section(workspace):
    edit(workspace / "packages/planted/CHANGELOG.md", "## 0.1.0", "## 0.0.9")
    commit(workspace)
    assert_refused(nox_session(workspace, "release-planted"), r"planted/CHANGELOG\.md has no section for 0\.1\.0")


@pytest.mark.slow
def test_release_refuses_a_change_note_left_over(workspace):
    write(workspace / "packages/planted/changes/+more.feature.md", "More.\n")
    commit(workspace)
    assert_refused(nox_session(workspace, "release-planted"), r"planted/changes still holds \+more\.feature\.md")


@pytest.mark.slow
def test_release_refuses_an_existing_tag(workspace):
    assert run(workspace, "git", "tag", "planted-v0.1.0").returncode == 0
    assert_refused(nox_session(workspace, "release-planted"), r"tag planted-v0\.1\.0 exists")


@pytest.mark.slow
def test_release_refuses_a_distribution_without_the_prefix(workspace):
    edit(workspace / "packages/planted/pyproject.toml", 'name = "aisec-planted"', 'name = "planted"')
    commit(workspace)
    assert_refused(nox_session(workspace, "release-planted"), "distribution planted lacks the prefix aisec-")


@pytest.mark.slow
def test_release_refuses_a_dirty_tree(workspace):
    write(workspace / "packages/planted/README.md", "# changed\n")
    assert_refused(nox_session(workspace, "release-planted"), "the tree is dirty")


@pytest.mark.slow
def test_release_refuses_an_invalid_card(workspace):
    edit(workspace / "packages/planted/src/planted/card.toml", "[paper]", "[papre]")
    commit(workspace)
    assert_refused(nox_session(workspace, "release-planted"), r"^planted/card\.toml: card lacks paper")


@pytest.mark.slow
def test_release_tests_wheel_and_floor_and_prints_the_tag(workspace):
    done = nox_session(workspace, "release-planted")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("1 passed") == 2
    assert re.search(r"aisec_planted-0\.1\.0-py3-none-any\.whl  [\d,]+ bytes  sha256 [0-9a-f]{64}", done.stdout)
    assert "git tag -a planted-v0.1.0" in done.stdout
    assert run(workspace, "git", "tag", "--list").stdout == ""


@pytest.fixture(scope="module")
def noxfile():
    import nox.registry

    spec = importlib.util.spec_from_file_location("noxfile_of_the_workspace", CHECKOUT / "noxfile.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    nox.registry.reset()
    spec.loader.exec_module(module)
    return module


def make_wheel(folder: Path, *, without: str = "", extra: tuple[str, bytes] | None = None, requires: str = "") -> Path:
    metadata = (
        f"Metadata-Version: 2.4\nName: aisec-planted\nVersion: 0.1.0\nRequires-Dist: {requires or 'numpy>=1.26'}\n"
    )
    content = {
        "planted/__init__.py": b"",
        "planted/py.typed": b"",
        "planted/card.toml": b"",
        "planted/templates/tests/test_it.py.tmpl": b"",
        "aisec_planted-0.1.0.dist-info/METADATA": metadata.encode(),
        "aisec_planted-0.1.0.dist-info/licenses/LICENSE": b"",
    }
    content.update([extra] if extra else [])
    wheel = folder / "aisec_planted-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in content.items():
            if not without or not name.endswith(without):
                archive.writestr(name, data)
    return wheel


@pytest.mark.parametrize(
    ("flaw", "reason"),
    [
        ({"without": "py.typed"}, "lacks */py.typed"),
        ({"without": "LICENSE"}, "lacks *.dist-info/licenses/LICENSE"),
        ({"without": "card.toml"}, "lacks */card.toml"),
        ({"extra": ("planted/w.safetensors", b"")}, "carries planted/w.safetensors"),
        ({"extra": ("tests/test_it.py", b"")}, "carries tests/test_it.py"),
        ({"extra": ("planted/big.py", b"#" * 1_000_000)}, "the limit is 1,000,000"),
        ({"requires": "aisec-common>=0.1"}, "requires aisec-common without an upper bound"),
        ({"requires": "numpy"}, "requires numpy without a lower bound"),
        ({"requires": "numpy<3"}, "requires numpy without a lower bound"),
        ({"requires": "numpy @ https://example.org/numpy.whl"}, "requires numpy by URL"),
    ],
)
def test_wheel_inspection_names_the_flaw(noxfile, tmp_path, flaw, reason):
    (found,) = noxfile.wheel_faults(make_wheel(tmp_path, **flaw))
    assert reason in found


def test_wheel_inspection_passes_a_sound_wheel(noxfile, tmp_path):
    assert list(noxfile.wheel_faults(make_wheel(tmp_path, requires="aisec-common[cli]>=0.1,<0.2"))) == []


def test_lock_inspection_names_what_must_not_be_in_it(noxfile, tmp_path, monkeypatch):
    rows = (
        ("numpy", 'registry = "https://pypi.org/simple"'),
        ("torchaudio", 'registry = "https://pypi.org/simple"'),
        ("fork", 'git = "https://example.org/fork"'),
    )
    text = "\n".join(f'[[package]]\nname = "{name}"\nsource = {{ {source} }}' for name, source in rows)
    write(tmp_path / "uv.lock", text)
    monkeypatch.setattr(noxfile, "ROOT", tmp_path)
    audio, fork = noxfile.lock_faults()
    assert "torchaudio" in audio
    assert "fork from a git URL" in fork


class PlainSession:
    """What `floor` asks of a session, without its environment."""

    chdir = staticmethod(contextlib.chdir)

    @staticmethod
    def run(*command: str, external: bool) -> None:
        subprocess.run(command, check=True, stderr=subprocess.PIPE)


def make_sdist(folder: Path, name: str, version: str) -> None:
    metadata = f"Metadata-Version: 2.2\nName: {name}\nVersion: {version}\n".encode()
    stem = f"{name.replace('-', '_')}-{version}"
    with tarfile.open(folder / f"{stem}.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo(f"{stem}/PKG-INFO")
        member.size = len(metadata)
        archive.addfile(member, io.BytesIO(metadata))


@pytest.mark.parametrize("exceptions", [{}, {"planted-source": "no wheels"}])
def test_floor_takes_source_distributions_only_of_the_named(noxfile, tmp_path, monkeypatch, exceptions):
    for version in ("1.0", "1.1", "1.2"):
        make_sdist(tmp_path, "planted-source", version)
    text = '[project]\nname = "planted"\nversion = "0.1.0"\ndependencies = ["planted-source>=1.1"]\n'
    write(tmp_path / "room/pyproject.toml", text)
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setattr(noxfile, "SDIST_ONLY", exceptions)
    member = noxfile.Member(folder=tmp_path / "room", pyproject={})
    if exceptions:
        constraints = noxfile.floor(PlainSession(), member, tmp_path).read_text(encoding="utf-8")
        assert re.findall("^planted-source==.*", constraints, re.MULTILINE) == ["planted-source==1.1"]
    else:
        with pytest.raises(subprocess.CalledProcessError):
            noxfile.floor(PlainSession(), member, tmp_path)


def test_every_benchmark_of_a_room_writes_a_record_of_its_own(noxfile):
    scripts = [Path("benchmarks/bench_solver.py"), Path("benchmarks/bench_walks.py")]
    given = ["--fast", "--out", "records/benchmark.json"]
    assert noxfile.own_record(given, scripts[:1], scripts[0]) == given
    first, second = (noxfile.own_record(given, scripts, script) for script in scripts)
    assert first == ["--fast", "--out", str(Path("records/benchmark_solver.json"))]
    assert second[-1] == str(Path("records/benchmark_walks.json"))


def test_every_member_has_its_three_sessions(noxfile):
    import nox.registry

    names = set(nox.registry.get())
    rooms = {path.parent.name for path in CHECKOUT.glob("*/*/pyproject.toml")}
    assert {f"{kind}-{room}" for kind in ("test", "release", "bench") for room in rooms} < names
    assert {"lint", "types", "docs", "checkpoints", "tests"} < names


def test_ci_runs_the_block_that_the_readme_prints(tmp_path):
    shutil.copytree(CHECKOUT / ".ci", tmp_path / ".ci")
    write(
        tmp_path / "README.md",
        "```\nfalse\n```\n<!-- newcomer: test -->\n```bash\necho one\necho two\n```\n```\nfalse\n```\n",
    )
    done = run(tmp_path, "bash", ".ci/run")
    assert (done.returncode, done.stdout) == (0, "one\ntwo\n")
    write(tmp_path / "README.md", "nothing\n")
    assert run(tmp_path, "bash", ".ci/run").returncode == 2

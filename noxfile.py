"""Sessions of the workspace: `nox -l` lists them, `nox` runs the default ones. A new room changes no line here."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath
from typing import Any

import nox
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent
PREFIX = "aisec-"
ELSEWHERE = "not checkpoint and not network and not gpu"  # what a default test may not need
FAST = f"not slow and {ELSEWHERE}"
SLOW = f"slow and {ELSEWHERE}"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # tiny models are slower on two, and tests start processes of their own
KEPT_OUT = {  # of uv.lock, and why
    "torchaudio": "built for another CUDA than torch's; transformers imports it when present",
    "gptqmodel": "has no solution beside flwr",
    "vllm": "pins torch; the user passes the object",
}
SDIST_ONLY = {"hqq": "publishes no wheels; pure Python, builds anywhere"}  # all else must be a wheel at its floor
FRAGMENT = re.compile(r"[\w+-]+\.(feature|bugfix|doc|removal|misc)(\.\d+)?\.md")
WHEEL_SUFFIXES = {".py", ".pyi", ".typed", ".toml", ".md", ".html", ".css", ".tmpl"}
WHEEL_BYTES = 1_000_000

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"  # uv makes a kept environment exact again


def find_uv() -> str:
    """The uv of the machine, else the one beside nox; taken at load, as flwr brings an older one into sessions."""
    if found := shutil.which("uv"):
        return found
    try:
        from uv import find_uv_bin
    except ImportError:
        sys.exit("uv is not installed: pip install uv")
    return str(find_uv_bin())


UV = find_uv()
if "AISEC_DATA" in os.environ:  # given relative to the workspace, read by tests inside their own folder
    os.environ["AISEC_DATA"] = str(ROOT / os.environ["AISEC_DATA"])


@dataclass(frozen=True, kw_only=True)
class Member:
    """A workspace member; its folder's name is its short name."""

    folder: Path
    pyproject: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def distribution(self) -> str:
        return str(self.pyproject["project"]["name"])

    @property
    def version(self) -> str:
        return str(self.pyproject["project"]["version"])

    @property
    def package(self) -> Path:
        return next(self.folder.glob("src/*/__init__.py")).parent

    @property
    def requirements(self) -> list[Requirement]:
        project = self.pyproject["project"]
        extras = project.get("optional-dependencies", {}).values()
        return [Requirement(line) for lines in (project.get("dependencies", []), *extras) for line in lines]

    def released(self) -> bool:
        """Whether CHANGELOG.md has a section for the version."""
        text = (self.folder / "CHANGELOG.md").read_text(encoding="utf-8")
        return re.search(rf"^## {re.escape(self.version)} \(", text, re.MULTILINE) is not None

    def fragments(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("changes/*") if not path.name.startswith("."))


def read_members() -> list[Member]:
    files = sorted(path for top in ("packages", "shared") for path in (ROOT / top).glob("*/pyproject.toml"))
    return [Member(folder=file.parent, pyproject=tomllib.loads(file.read_text(encoding="utf-8"))) for file in files]


MEMBERS = read_members()


def for_every_member(kind: str, *, default: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers `KIND-MEMBER` for every member."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        for member in MEMBERS:
            session = functools.update_wrapper(functools.partial(function, member=member), function)
            nox.session(name=f"{kind}-{member.name}", default=default)(session)
        return function

    return register


def sync(session: nox.Session, *selection: str) -> None:
    """Makes the session's environment exactly what uv.lock says; without the variable uv would strip the root .venv."""
    environment = {"UV_PROJECT_ENVIRONMENT": session.virtualenv.location}
    session.run_install(UV, "sync", "--quiet", "--frozen", *selection, env=environment, external=True)


# ---------------------------------------------------------------- checking the tree


@nox.session
def lint(session: nox.Session) -> None:
    """Style, the lock, and one environment that holds every member."""
    session.run(UV, "lock", "--check", "--quiet", external=True)
    if faults := [*lock_faults(), *member_faults(), *record_faults()]:
        session.error("; ".join(faults))
    sync(session, "--all-packages")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run(UV, "pip", "check", external=True)  # a stale in-house bound passes `uv lock --check`
    session.run("python", "-c", "".join(f"import {member.package.name}\n" for member in MEMBERS))


def lock_faults() -> Iterator[str]:
    """What uv.lock holds and must not."""
    for package in tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]:
        if reason := KEPT_OUT.get(package["name"]):
            yield f"uv.lock holds {package['name']}: {reason}"
        if "git" in package["source"]:
            yield f"uv.lock takes {package['name']} from a git URL: use a release"


def member_faults() -> Iterator[str]:
    """Members that the root leaves out, or whose change notes towncrier would not find."""
    root = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = {Requirement(line).name for line in root["project"]["dependencies"]}
    for member in MEMBERS:
        if member.distribution not in wanted:
            yield f"pyproject.toml of the root does not depend on {member.distribution}"
        for fragment in member.fragments():
            if not FRAGMENT.fullmatch(fragment.name):
                yield f"{fragment.relative_to(ROOT)} is no change note: name it like +speed.feature.md"
        if not member.released() and not member.fragments():
            yield f"{member.name} has neither a changelog section for {member.version} nor a note in changes/"


def record_faults() -> Iterator[str]:
    """Records that .gitignore keeps out: READMEs are made from them, so that another clone would differ."""
    if (ROOT / ".git").exists():
        for path in git("ls-files", "--others", "--ignored", "--exclude-standard", "packages/*/records/*").splitlines():
            if not path.endswith("journal.jsonl"):
                yield f"{path} is a record, but ignored by git"


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict on every member's src."""
    sync(session, "--all-packages")
    session.run("mypy", "--strict", *(str(member.folder.relative_to(ROOT) / "src") for member in MEMBERS))


@nox.session
def docs(session: nox.Session) -> None:
    """The members' READMEs and docstrings as pages in shared/aisec-common/docs/_build; a warning is an error."""
    sync(session, "--all-packages")
    settings = ROOT / "shared" / "aisec-common" / "docs"
    build = settings / "_build"
    session.run(
        "sphinx-build", "-q", "-W", "--keep-going", "-E", "-c", str(settings), "-d", str(build / "doctrees"), ".",
        str(build / "html"),
    )  # fmt: skip
    session.log(f"docs: {(build / 'html' / 'README.html').relative_to(ROOT)}")


# ---------------------------------------------------------------- running


@for_every_member("test", default=True)
def test(session: nox.Session, member: Member) -> None:
    """Tests in an environment of the member alone, the slow ones last; arguments after -- go to one pytest run."""
    sync(session, "--package", member.distribution, "--group", "test")
    with session.chdir(member.folder):
        if session.posargs:
            session.run("pytest", "-m", ELSEWHERE, *session.posargs, env=ONE_THREAD)
        else:
            session.run("pytest", "-m", FAST, env=ONE_THREAD)
            session.run("pytest", "-m", SLOW, env=ONE_THREAD, success_codes=[0, 5])  # 5: none is slow


@nox.session(default=False)
def tests(session: nox.Session) -> None:
    """Every test-*."""
    for member in MEMBERS:
        session.notify(f"test-{member.name}", session.posargs)


@nox.session(default=False)
def checkpoints(session: nox.Session) -> None:
    """Fetches the checkpoints that members name ([tool.aisec] checkpoints) and runs the tests that need them."""
    for member in MEMBERS:
        sync(session, "--package", member.distribution, "--group", "test")
        if names := member.pyproject["tool"].get("aisec", {}).get("checkpoints"):
            session.run("aisec", "data", "fetch", *names)
        with session.chdir(member.folder):
            session.run("pytest", "-m", "checkpoint and not gpu", *session.posargs, success_codes=[0, 5])


@for_every_member("bench")
def bench(session: nox.Session, member: Member) -> None:
    """Side by side with the peer library: ratios per size, printed and written as JSON (`-- --out FILE`: there).

    Of several scripts bench_X.py each writes FILE with _X at the end of its stem.
    """
    scripts = sorted(member.folder.glob("benchmarks/*.py"))
    if not scripts:
        session.skip(f"{member.name} has no benchmarks")
    sync(session, "--package", member.distribution, "--group", "bench")
    arguments = session.posargs or ["--out", str(Path(session.create_tmp()).absolute() / "benchmark.json")]
    with session.chdir(member.folder):
        for script in scripts:
            session.run("python", str(script.relative_to(member.folder)), *own_record(arguments, scripts, script))


def own_record(arguments: list[str], scripts: list[Path], script: Path) -> list[str]:
    """The arguments with a file of its own for each of several scripts: benchmark.json becomes benchmark_X.json."""
    if len(scripts) == 1 or "--out" not in arguments:
        return arguments
    at = arguments.index("--out") + 1
    out = Path(arguments[at])
    own = out.with_name(f"{out.stem}_{script.stem.removeprefix('bench_')}{out.suffix}")
    return [*arguments[:at], str(own), *arguments[at + 1 :]]


# ---------------------------------------------------------------- releasing


@for_every_member("release")
def release(session: nox.Session, member: Member) -> None:
    """Builds the member, tests its wheel and the lowest versions it allows, prints the tag; publishes nothing."""
    if reason := refusal(member):
        session.error(reason)
    sync(session, "--only-group", "dev")
    check_card(session, member)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        wheels = build(session, member, work)
        session.run("twine", "check", "--strict", *(str(file) for file in sorted(work.glob("aisec_*"))))
        if faults := [fault for wheel in wheels for fault in wheel_faults(wheel)]:
            session.error("; ".join(faults))
        unwanted = shutil.ignore_patterns("src", "_build", "__pycache__", ".*")
        shutil.copytree(member.folder, work / "room", ignore=unwanted)
        test_installed(session, install(session, work, "latest", *map(str, wheels)))
        lowest = install(session, work, "floor", str(wheels[0]), "--constraint", str(floor(session, member, work)))
        test_installed(session, lowest, "-W", "default")  # old versions warn about each other
        for file in sorted(work.glob("aisec_*")):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            session.log(f"{file.name}  {file.stat().st_size:,} bytes  sha256 {digest}")
    session.log(f"ready: git tag -a {tag(member)} -m '{member.distribution} {member.version}'")


def tag(member: Member) -> str:
    return f"{member.name}-v{member.version}"


def refusal(member: Member) -> str | None:
    """Why the member cannot be released from this tree; these cost nothing and come first."""
    if not member.distribution.startswith(PREFIX):
        return f"distribution {member.distribution} lacks the prefix {PREFIX}: the bare name may be a stranger's"
    if git("status", "--porcelain"):
        return "the tree is dirty: commit first"
    if git("tag", "--list", tag(member)):
        return f"tag {tag(member)} exists: raise the version in {member.name}/pyproject.toml"
    if not member.released():
        return f"{member.name}/CHANGELOG.md has no section for {member.version}: run towncrier build"
    if notes := member.fragments():
        return f"{member.name}/changes still holds {notes[0].name}: run towncrier build"
    return None


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def check_card(session: nox.Session, member: Member) -> None:
    """Validates a room's card.toml with the house's own reader, which needs no installation."""
    if member.folder.parent.name == "packages":
        reader = ROOT / "shared" / "aisec-common" / "src" / "aisec_common" / "card.py"
        session.run("python", "-P", str(reader), str(member.package / "card.toml"))


def build(session: nox.Session, member: Member, work: Path) -> list[Path]:
    """sdist and wheel of the member and of each in-house dependency; the wheels, the member's own first."""
    in_house = {other.distribution: other for other in MEMBERS}
    order = [member]
    for one in order:  # grows while it is walked: dependencies of dependencies
        needed = {requirement.name for requirement in one.requirements} & set(in_house)
        order += [in_house[name] for name in sorted(needed) if in_house[name] not in order]
    for one in order:
        arguments = ("--package", one.distribution, "--no-sources", "-o", str(work))
        session.run(UV, "build", "--quiet", *arguments, external=True)
    return [next(work.glob(f"{one.distribution.replace('-', '_')}-*.whl")) for one in order]


def wheel_faults(wheel: Path) -> Iterator[str]:
    """What is missing from a wheel, and what should not be in it."""
    with zipfile.ZipFile(wheel) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
        metadata = next(name for name in names if name.match("*.dist-info/METADATA"))
        headers = HeaderParser().parsestr(archive.read(str(metadata)).decode())
    wanted = ["*/py.typed", "*.dist-info/licenses/LICENSE"]
    if headers["Name"] != f"{PREFIX}common":
        wanted.append("*/card.toml")
    yield from (f"{wheel.name} lacks {pattern}" for pattern in wanted if not any(name.match(pattern) for name in names))
    for name in names:
        if name.parts[0].endswith(".dist-info"):
            continue
        if name.suffix not in WHEEL_SUFFIXES or ("tests" in name.parts and name.suffix == ".py"):
            yield f"{wheel.name} carries {name}: no tests, data or weights in a wheel"
    if (size := wheel.stat().st_size) >= WHEEL_BYTES:
        yield f"{wheel.name} has {size:,} bytes, the limit is {WHEEL_BYTES:,}"
    for requirement in map(Requirement, headers.get_all("Requires-Dist", [])):
        bounds = {specifier.operator for specifier in requirement.specifier}
        if requirement.url:
            yield f"{wheel.name} requires {requirement.name} by URL: an index refuses that"
        elif not bounds & {">=", ">", "~=", "=="}:
            yield f"{wheel.name} requires {requirement.name} without a lower bound"
        elif requirement.name.startswith(PREFIX) and not bounds & {"<", "<=", "~=", "=="}:
            yield f"{wheel.name} requires {requirement.name} without an upper bound"


def floor(session: nox.Session, member: Member, work: Path) -> Path:
    """The lowest versions that the member's own bounds allow, as a constraints file."""
    constraints = work / "floor.txt"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    exceptions = [word for name in SDIST_ONLY for word in ("--no-binary", name)]
    with session.chdir(member.folder):
        session.run(
            UV, "pip", "compile", "pyproject.toml", "--quiet", "--no-sources", "--all-extras",
            "--resolution", "lowest-direct", "--only-binary", ":all:", *exceptions, "--find-links", str(work),
            "--python-version", version, "-o", str(constraints), external=True,
        )  # fmt: skip
    return constraints


def install(session: nox.Session, work: Path, label: str, *requirements: str) -> Path:
    """A fresh environment that holds wheel files and the member's test group, nothing of the workspace."""
    venv = work / label
    python = str(venv / "bin" / "python")
    session.run(UV, "venv", "--quiet", "--python", str(Path(session.bin) / "python"), str(venv), external=True)
    session.run(
        UV, "pip", "install", "--quiet", "--python", python, "--no-sources", "--find-links", str(work),
        "--group", f"{work / 'room' / 'pyproject.toml'}:test", *requirements, external=True,
    )  # fmt: skip
    session.run(UV, "pip", "check", "--python", python, external=True)
    return venv


def test_installed(session: nox.Session, venv: Path, *arguments: str) -> None:
    """Runs the copied tests, with the room's other files but its src beside them."""
    environment = {"PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(venv), **ONE_THREAD}
    with session.chdir(venv.parent / "room"):
        session.run(str(venv / "bin" / "pytest"), "-m", FAST, *arguments, env=environment, external=True)

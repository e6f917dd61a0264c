"""A third party's room, installed by nothing but a folder on the path: a package and its dist-info."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

CARD = """
[paper]
title = "A toy & <b>its</b> paper"
authors = ["A. Author", "B. Author"]
arxiv = "0000.00000"
venue = "nowhere"
licence_code = "none"
licence_data = "none"
[use]
summary = "adds noise to a number"
threat_model = "none"
intended = "tests"
misuse = "none"
helps = ["always"]
hurts = ["never"]
[[claimed]]
what = "effect"
value = "1"
[[not_reproduced]]
what = "nothing"
why = "there is nothing"
[[evidence]]
component = "all"
level = "design"
"""

STUDY = """
import os, time
from dataclasses import dataclass
from aisec_common import Claim, Extra, Scale, Study
from aisec_common.seeding import numpy_rng

@dataclass(frozen=True, kw_only=True)
class ToyScale(Scale):
    effect: float = 1.0
    kinds: tuple[str, ...] = ("one", "two")

def prepare(seed, scale):
    if os.environ.get("TOY_LOG"):
        with open(os.environ["TOY_LOG"], "a") as file: file.write(f"{seed}\\n")
    return numpy_rng(seed, "shared").normal()

def trial(arm, shared, seed, scale, log):
    if os.environ.get("TOY_RAISE") == f"{arm}{seed}": raise RuntimeError("planted")
    if os.environ.get("TOY_FORK") == f"{arm}{seed}":
        import subprocess, sys
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
        os.kill(os.getpid(), 9)
    if os.environ.get("TOY_CHILD"):
        import multiprocessing
        child = multiprocessing.get_context("spawn").Process(target=print); child.start(); child.join()
    if os.environ.get("TOY_DIE") == f"{arm}{seed}": os._exit(9)
    for step in range(3):
        time.sleep(float(os.environ.get("TOY_SLEEP", "0")))
        log.progress(step, 3)
    rng = numpy_rng(seed, arm)
    value = shared + rng.normal() + (scale.effect if arm == "method" else 0.0)
    log.data("shared", str(shared))
    log.sample("a<b", value=value)
    log.sample("undefined", value=float("nan"))
    return {"value": value}

def drawn(outcomes):
    from matplotlib.figure import Figure
    figure = Figure(); figure.subplots().plot([arms["method"].metrics["value"] for arms in outcomes.values()])
    return figure

STUDY = Study(
    room="toy", trial=trial, prepare=prepare, arms=("method", "baseline", "control", "heavy"), figures=(drawn,),
    scales={"quick": ToyScale(seeds=3), "standard": ToyScale(seeds=8), "full": ToyScale(seeds=20, effect=2.0)},
    extras=(Extra(name="heavy", modules=("no_such_module",), arms=("heavy",)),),
    claims=(
        Claim(text="method <beats> baseline", metric="value", arm="method", over="baseline", control="control"),
        Claim(text="needs more", metric="value", arm="heavy", over="baseline", control="control"),
    ),
)
"""


@dataclass(frozen=True)
class Site:
    """A folder on PYTHONPATH that plays site-packages."""

    folder: Path

    def install(self, project: Path) -> None:
        """Makes a dist-info for a project folder, as an editable install would."""
        content = tomllib.loads((project / "pyproject.toml").read_text())["project"]
        info = self.folder / f"{content['name'].replace('-', '_')}-{content['version']}.dist-info"
        info.mkdir()
        requires = "".join(f"Requires-Dist: {each}\n" for each in content.get("dependencies", []))
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {content['name']}\nVersion: {content['version']}\n{requires}"
        )
        points = {"console_scripts": content.get("scripts", {}), **content.get("entry-points", {})}
        lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in of.items()) for group, of in points.items()]
        (info / "entry_points.txt").write_text("\n".join(lines))
        for package in (project / "src").iterdir():
            (self.folder / package.name).symlink_to(package, target_is_directory=True)

    def run(self, *words: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """`python WORDS` in `cwd` with this folder on the path."""
        return subprocess.run(
            [sys.executable, *map(str, words)], cwd=cwd, env=self.env(**variables), capture_output=True, text=True
        )

    def aisec(self, *words: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """The `aisec` command in `cwd`."""
        return self.run("-m", "aisec_common.cli", *words, cwd=cwd, **variables)

    def env(self, **variables: str) -> dict[str, str]:
        """The environment of a child process that sees this folder."""
        return {**os.environ, "PYTHONPATH": str(self.folder), **variables}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    yield Site(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] in {p.name for p in folder.iterdir()}]:
        del sys.modules[name]


@pytest.fixture
def toy(site: Site, tmp_path: Path) -> Site:
    """The room `toy` of the distribution `their-toys`."""
    project = tmp_path / "their-toys"
    package = project / "src" / "toyroom"
    package.mkdir(parents=True)
    (project / "pyproject.toml").write_text(
        '[project]\nname = "their-toys"\nversion = "1.2"\n'
        '[project.scripts]\ntoy = "toyroom.cli:main"\n'
        '[project.entry-points."aisec.studies"]\ntoy = "toyroom.study:STUDY"\n'
    )
    (package / "__init__.py").write_text("")
    (package / "cli.py").write_text("import sys\ndef main():\n    print('toy', *sys.argv[1:])\n    return 3\n")
    (package / "card.toml").write_text(CARD)
    (package / "study.py").write_text(STUDY)
    site.install(project)
    return site

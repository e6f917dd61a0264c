"""The contract every room passes, and the pytest plugin behind it (`-p aisec_common.testing` in a room's addopts).

The plugin registers the markers, keeps torch at one thread, takes hypothesis's deadline away, as time decides no test,
and skips `real`, `checkpoint` and `gpu` tests, with the reason, where what they need is not there.
"""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import pytest
from aisec_common.imports import misplaced_imports, undeclared_imports
from aisec_common.result import read_records
from aisec_common.rooms import Room, choose_rooms
from aisec_common.runner import plan, run
from aisec_common.study import Claim, Outcome, Study
from aisec_common.verdict import judge

MARKERS = {
    "slow": "takes long (kill -9, whole studies, process pairs); the nox session runs these last",
    "network": "asks the package index",
    "checkpoint": "needs a fetched checkpoint (aisec data fetch NAME)",
    "real": "needs real data found through AISEC_DATA",
    "gpu": "needs an accelerator",
}
PAIRS = 16
IMPORT_ALONE = """
import socket, sys
def refuse(*_): raise SystemExit("import touches the network")
socket.socket.connect = socket.getaddrinfo = refuse
import {module}
torch = sys.modules.get("torch")
if torch is not None and torch.cuda.is_initialized(): raise SystemExit("import touches a device")
"""


def pytest_configure(config: pytest.Config) -> None:
    """Registers the markers; one thread, so that tests are as fast beside each other as alone; no deadline."""
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if importlib.util.find_spec("hypothesis"):
        from hypothesis import settings

        settings.register_profile("aisec", deadline=None)
        settings.load_profile("aisec")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests whose data or device is absent."""
    for item in items:
        if item.get_closest_marker("real") and not os.environ.get("AISEC_DATA"):
            item.add_marker(pytest.mark.skip(reason="AISEC_DATA names no folder of real data"))
        if item.get_closest_marker("gpu") and not _has_accelerator():
            item.add_marker(pytest.mark.skip(reason="torch finds no accelerator"))


def _has_accelerator() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


class RoomContract:
    """Subclass it in tests/test_contract.py, name the room, and list what it must refuse.

    Attributes:
        room: the room's short name.
        wrong_inputs: (call, words) pairs: the call must raise a ValueError or TypeError of one line with those words.
        plants: for claims with their own `effect`: claim text -> {metric: (usual value, spread)}, the spread negative
            where a lower value makes the claim true.
    """

    room: ClassVar[str]
    wrong_inputs: ClassVar[Sequence[tuple[Callable[[], object], str]]] = ()
    plants: ClassVar[Mapping[str, Mapping[str, tuple[float, float]]]] = {}

    @property
    def _room(self) -> Room:
        return choose_rooms([self.room])[0]

    @property
    def _project(self) -> Path:
        return Path(inspect.getfile(type(self))).resolve().parents[1]

    def test_names(self) -> None:
        """Distribution, version and typing marker are as the house wants them."""
        room, module = self._room, importlib.import_module(self._room.package.name)
        assert room.distribution == f"aisec-{self.room}"
        assert module.__version__ == room.version
        assert (room.package / "py.typed").exists()

    def test_card_is_valid(self) -> None:
        """card.toml is package data and valid."""
        assert self._room.card().paper.title

    def test_readme_is_in_step(self) -> None:
        """The generated blocks of the README say what card and committed records say."""
        readme = self._project / "README.md"
        if not (self._project / "pyproject.toml").exists():
            pytest.skip("the README is checked in the checkout only")
        from aisec_common.readme import refresh

        text = readme.read_text(encoding="utf-8")
        assert "<!-- aisec:card -->" in text
        assert "<!-- aisec:results " in text or not (self._project / "records").exists()
        assert refresh(readme, self._room) == text, f"run: aisec report --readme {self._project.name}/README.md"

    def test_frameworks_stay_in_their_adapters(self) -> None:
        """The adapter rule."""
        assert not misplaced_imports(self._room.package)

    def test_imports_are_declared(self) -> None:
        """Whatever the room imports, its own pyproject requires."""
        assert not undeclared_imports(self._room.package, self._room.distribution)

    def test_public_names_are_documented(self) -> None:
        """__all__ holds 3-8 names besides the version, each with a docstring and a doctest."""
        module = importlib.import_module(self._room.package.name)
        names = [name for name in module.__all__ if name != "__version__"]
        assert 3 <= len(names) <= 8, f"__all__ has {len(names)} names"
        bare = [name for name in names if ">>>" not in (inspect.getdoc(getattr(module, name)) or "")]
        assert not bare, f"without a doctest: {', '.join(bare)}"

    def test_doctests_pass(self) -> None:
        """Every example in a docstring of the room is true."""
        package = self._room.package
        tried = 0
        for info in pkgutil.walk_packages([str(package)], f"{package.name}."):
            result = doctest.testmod(importlib.import_module(info.name), optionflags=doctest.ELLIPSIS)
            assert not result.failed, info.name
            tried += result.attempted
        assert tried

    def test_quickstart_runs(self) -> None:
        """The quickstart ends well and says something."""
        script = self._project / "examples" / "quickstart.py"
        if not script.exists():
            pytest.skip("the examples are in the checkout only")
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()

    def test_wrong_input_raises(self) -> None:
        """Wrong input gives one clear line."""
        assert self.wrong_inputs, "list what the room must refuse"
        for call, words in self.wrong_inputs:
            with pytest.raises((ValueError, TypeError), match=words) as caught:
                call()
            assert "\n" not in str(caught.value)

    def test_import_touches_no_device_and_no_network(self) -> None:
        """Importing the room opens no connection and starts no device."""
        code = IMPORT_ALONE.format(module=self._room.package.name)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

    def test_no_claim_holds_on_noise(self) -> None:
        """All arms on one shared model with independent noise: nothing holds, wherever the shared model stands."""
        study = self._room.load()
        for claim in study.claims:
            for level in (0.0,) if claim.margin < 0 else (0.0, claim.margin + 10.0):
                assert verdict_of(study, claim, self._made_up(study, claim, level, 0.0)) != "holds", claim.text

    def test_a_planted_effect_holds(self) -> None:
        """An effect of three standard errors for the arm alone: the claim holds."""
        study = self._room.load()
        for claim in study.claims:
            assert verdict_of(study, claim, self._made_up(study, claim, 0.0, 3.0)) == "holds", claim.text

    @pytest.mark.slow
    def test_a_seed_gives_the_same_numbers_in_any_order_of_arms(self, tmp_path: Path) -> None:
        """What resuming rests on: an arm gives the same numbers whichever arms its process ran before."""
        room, study = self._room, self._room.load()
        forward, backward = tmp_path / "forward", tmp_path / "backward"
        (task,), _ = plan({room: study}, forward, "quick", seeds=1)
        assert run([task, replace(task, arms=task.arms[::-1], folder=backward)]) == []
        found = {
            folder.name: {arm: dict(record.metrics) for arm, (record, _) in read_records(folder, room.name)[0].items()}
            for folder in (forward, backward)
        }
        assert str(found["forward"]) == str(found["backward"])  # as text, in which NaN equals NaN

    def _made_up(
        self, study: Study, claim: Claim, level: float, standard_errors: float
    ) -> dict[int, dict[str, Outcome]]:
        if claim.effect is not None:
            assert claim.text in self.plants, f"name the metrics of {claim.text!r} in plants"
            return made_up_outcomes(study, claim, self.plants[claim.text], standard_errors)
        assert claim.metric is not None
        metrics = {claim.metric: (level, -1.0 if claim.lower_is_better else 1.0)}
        return made_up_outcomes(study, claim, metrics, standard_errors)


class MemoryLog:
    """A `TrialLog` for calling a trial in a test: keeps samples and data, and checks progress as it comes.

    >>> log = MemoryLog()
    >>> log.sample("q1", refused=True)
    >>> log.samples
    {'q1': {'refused': True}}
    """

    def __init__(self) -> None:
        self.samples: dict[str, dict[str, Any]] = {}
        self.hashes: dict[str, Any] = {}
        self.done: list[float] = []

    def sample(self, id: str, **values: Any) -> None:
        """Keeps the values of one sample; an id comes once."""
        assert id not in self.samples, id
        self.samples[id] = values

    def progress(self, done: int, total: int) -> None:
        """Keeps done / total."""
        assert 0 <= done <= total
        self.done.append(done / total)

    def data(self, name: str, content: Any) -> None:
        """Keeps the content itself."""
        self.hashes[name] = content


def verdict_of(study: Study, claim: Claim, outcomes: Mapping[int, Mapping[str, Outcome]]) -> str:
    """The verdict on one claim alone, whatever extras are installed."""
    return judge(replace(study, claims=(claim,), extras=()), outcomes)[0].verdict


def end_process() -> NoReturn:
    """Ends a worker of a distributed test at once, as having succeeded.

    A thread of torch's gloo may let go of the last collective while the interpreter is ending, which aborts about one
    such process in four (torch 2.15; github.com/pytorch/pytorch/pull/179291).
    """
    os._exit(0)


def made_up_outcomes(
    study: Study, claim: Claim, metrics: Mapping[str, tuple[float, float]], standard_errors: float
) -> dict[int, dict[str, Outcome]]:
    """Outcomes in which only the claim's arm differs, by a known number of standard errors of a paired difference.

    Each metric has its usual value and, over the pairs, a spread. Every arm gets noise of mean exactly 0 and spread
    exactly 1 over the pairs, orthogonal to that of every other arm, so that the t value of each paired difference is
    the planted one and no verdict here is a matter of luck. At 0 the arm stands where the claim is just not true:
    level with the rest, or at a negative margin below them.
    """
    import numpy as np

    n = max(PAIRS, len(study.arms) + 2)
    basis = np.random.default_rng(0).normal(size=(n, len(study.arms) + 1))
    basis[:, 0] = 1
    noise = np.linalg.qr(basis)[0][:, 1:] * (n - 1) ** 0.5
    shift = standard_errors * (2 / n) ** 0.5
    if claim.effect is None and (standard_errors or claim.margin < 0):
        shift += claim.margin
    pairs = [
        {
            arm: {
                m: usual + spread * (noise[i, k] + shift * (arm == claim.arm)) for m, (usual, spread) in metrics.items()
            }
            for k, arm in enumerate(study.arms)
        }
        for i in range(n)
    ]
    if claim.unit == "seed":
        return {i: {arm: Outcome(metrics=metrics) for arm, metrics in pair.items()} for i, pair in enumerate(pairs)}
    samples = {arm: {str(i): pairs[i][arm] for i in range(n)} for arm in study.arms}
    return {0: {arm: Outcome(metrics={}, samples=samples[arm]) for arm in study.arms}}

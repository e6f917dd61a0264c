"""What the `gfmextract` command takes: one frozen dataclass a verb."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gfmextract.choices import DefenseName, ScenarioName
from gfmextract.config import BackboneName

GRAPHCLIP = "graphclip"
"""A victim that the command knows by name."""


@dataclass(frozen=True, kw_only=True)
class AuditJob:
    """Measures how much of an encoder leaks through its answers, and what each defence costs whom.

    Killed, it goes on where it was.

    Args:
        victim: MODULE:FACTORY, a function that returns an object with encode_graph and encode_text; the folder you
            call from is searched too. Or graphclip, for a victim of this package.
        graphs: files of graphs, as `gfmextract.graph_file.save_graph` writes them.
        out: folder of leakage.html, scenarios.csv and defenses.csv; finished rows are kept in its runs, answers of the
            victim in its answers: choose another after a change of the victim's code.
        checkpoint: handed to the factory, where it takes one; of graphclip the file that `GraphClip.save` wrote.
        text_model: text tower of graphclip: a known checkpoint, a folder or a hub's org/name; by default the one that
            the file names.
        scenarios: all, or some of them.
        defenses: all, none, or some of them.
        adaptive: also attackers who know the defence.
        backbone: of the surrogate.
        layers: of the surrogate.
        hidden: its width.
        epochs: of the regression.
        hops: radius of the submitted ego graphs.
        cap: most nodes of one.
        positions: length of their random-walk positions, as the victim reads them.
        seed: of splits, queries, initial weights and keys.
        device: where the surrogate is trained: auto, cpu, cuda, ...
    """

    victim: str
    graphs: tuple[Path, ...]
    out: Path
    checkpoint: str | None = None
    text_model: str | None = None
    scenarios: tuple[Literal["all"] | ScenarioName, ...] = ("all",)
    defenses: tuple[Literal["all", "none"] | DefenseName, ...] = ("all",)
    adaptive: bool = True
    backbone: BackboneName = "sage"
    layers: int = 2
    hidden: int = 64
    epochs: int = 30
    hops: int = 1
    cap: int = 9
    positions: int = 8
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        module, colon, factory = self.victim.partition(":")
        if self.victim == GRAPHCLIP:
            if self.checkpoint is None:
                raise ValueError(f"--victim {GRAPHCLIP} needs --checkpoint FILE, which GraphClip.save wrote")
        elif not (module and colon and factory):
            raise ValueError(f"--victim must be {GRAPHCLIP} or MODULE:FACTORY, got {self.victim!r}")
        elif self.text_model is not None:
            raise ValueError(f"--text-model is for --victim {GRAPHCLIP}: {self.victim} brings its own")
        if not self.graphs:
            raise ValueError("--graphs must name at least one file")
        for name, given in (("--scenarios", self.scenarios), ("--defenses", self.defenses)):
            if not given or (len(given) > 1 and {"all", "none"} & set(given)):
                raise ValueError(f"{name} must be all or some names, got {' '.join(given) or 'nothing'}")

    @property
    def chosen_scenarios(self) -> Literal["all"] | tuple[str, ...]:
        """As `leakage_report` takes them."""
        return "all" if self.scenarios == ("all",) else self.scenarios

    @property
    def chosen_defenses(self) -> Literal["all"] | tuple[str, ...]:
        """As `leakage_report` takes them."""
        if self.defenses == ("none",):
            return ()
        return "all" if self.defenses == ("all",) else self.defenses


@dataclass(frozen=True, kw_only=True)
class CompareJob:
    """Attacks published and real models: FoToM, and a victim on MiniLM; killed, it goes on where it was.

    Args:
        out: folder of the results.
        victim: fotom (graphs' shapes) or minilm (import graphs of Python packages).
        seeds: repetitions of every attack.
    """

    out: Path
    victim: Literal["fotom", "minilm"] = "fotom"
    seeds: int = 3

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"--seeds must be at least 1, got {self.seeds}")

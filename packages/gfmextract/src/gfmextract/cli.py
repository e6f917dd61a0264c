"""The `gfmextract` command: audit a model one holds in process, and the attacks on published and real ones."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from aisec_common.command import run_command
from aisec_common.files import locked, require_writable, write_atomic
from aisec_common.progress import counting
from aisec_common.table import markdown

from gfmextract.jobs import GRAPHCLIP, AuditJob, CompareJob

if TYPE_CHECKING:
    from gfmextract.pyg_graph_clip import GraphClip
    from gfmextract.victim import Victim

Command = Annotated[AuditJob, tyro.conf.subcommand("audit")] | Annotated[CompareJob, tyro.conf.subcommand("compare")]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `gfmextract ARGV`; returns 0, 2 for misuse (one line on stderr) or 130 after Ctrl-C."""
    return run_command("gfmextract", Command, _do, argv)


def _do(job: Any) -> None:
    verbs: dict[type, Callable[[Any], None]] = {AuditJob: _audit, CompareJob: _compare}
    verbs[type(job)](job)


def _audit(job: AuditJob) -> None:
    from gfmextract.extraction import EmbeddingRegression
    from gfmextract.graph_file import load_graph
    from gfmextract.leakage import leakage_report
    from gfmextract.scenarios import Neighbourhood

    require_writable(job.out, "--out")
    graphs = [load_graph(file) for file in job.graphs]
    victim = load_graph_clip(job) if job.victim == GRAPHCLIP else load_victim(job.victim, job.checkpoint)
    settings = {name: getattr(job, name) for name in ("backbone", "layers", "hidden", "epochs", "seed", "device")}
    with locked(job.out, "--out"), counting() as show:
        report = leakage_report(
            victim,
            graphs,
            scenarios=job.chosen_scenarios,
            defenses=job.chosen_defenses,
            adaptive=job.adaptive,
            attack=EmbeddingRegression(**settings),
            neighbourhood=Neighbourhood(hops=job.hops, cap=job.cap, positions=job.positions),
            victim_cost=getattr(victim, "cost", None),
            seed=job.seed,
            keep=job.out,
            show=show,
        )
        report.save(job.out / "leakage.html")
        for name, table in (("scenarios", report.table()), ("defenses", report.defense_table())):
            write_atomic(job.out / f"{name}.csv", table.round(4).to_csv(index=False))
    print(report.to_markdown())
    print(f"saved: {', '.join(str(job.out / name) for name in ('leakage.html', 'scenarios.csv', 'defenses.csv'))}")


def _compare(job: CompareJob) -> None:
    from gfmextract.real_comparison import compare
    from gfmextract.real_tables import FILES, write_tables

    require_writable(job.out, "--out")
    with locked(job.out, "--out"), counting() as show:
        compare(job.victim, job.out, seeds=job.seeds, show=show)
        found = write_tables(job.out)
    print(markdown(tuple(found[0]), [tuple(map(str, row.values())) for row in found]))
    print(f"saved: {', '.join(str(job.out / name) for name in FILES)}")


def load_victim(where: str, checkpoint: str | None = None) -> Victim:
    """What MODULE:FACTORY returns, called with the checkpoint where there is one.

    Raises:
        ValueError: for a module or function that is not there, or an object that is no victim; the message names it.
    """
    module_name, _, name = where.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # a console script does not look into the folder it is called from
        sys.path.insert(0, here)
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and needs one that is not
        raise ValueError(f"--victim: there is no module {module_name}") from None
    except AttributeError:
        raise ValueError(f"--victim: module {module_name} has no {name}") from None
    victim: Victim = factory() if checkpoint is None else factory(checkpoint)
    if missing := [method for method in ("encode_graph", "encode_text") if not callable(getattr(victim, method, None))]:
        raise ValueError(f"--victim: what {where} returns has no method {missing[0]}")
    return victim


def load_graph_clip(job: AuditJob) -> GraphClip:
    """The victim that `GraphClip.save` wrote to the job's checkpoint, with its text tower.

    Raises:
        ValueError: for another file, or another tower than it was pretrained with.
        FileNotFoundError: for a tower that has not been fetched.
    """
    from gfmextract.pyg_graph_clip import GraphClip

    assert job.checkpoint is not None  # the job has seen to it
    return GraphClip.load(Path(job.checkpoint), job.text_model)


if __name__ == "__main__":
    sys.exit(main())

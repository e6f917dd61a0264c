"""The `icfnet` command: train on a cohort in MCAT's layout, evaluate on a fold, compare on real cohorts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from aisec_common.command import run_command
from aisec_common.files import locked, require_writable, write_atomic, write_figure
from aisec_common.progress import counting
from aisec_common.result import finite
from aisec_common.table import markdown

from icfnet.jobs import CohortJob, CompareJob, EvaluateJob, TrainJob

if TYPE_CHECKING:
    from icfnet.cohort import Cohort

Command = (
    Annotated[TrainJob, tyro.conf.subcommand("train")]
    | Annotated[EvaluateJob, tyro.conf.subcommand("evaluate")]
    | Annotated[CompareJob, tyro.conf.subcommand("compare")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `icfnet ARGV`; returns 0, 2 for misuse (one line on stderr) or 130 after Ctrl-C."""
    return run_command("icfnet", Command, _do, argv)


def _do(job: Any) -> None:
    verbs: dict[type, Callable[[Any], None]] = {TrainJob: _train, EvaluateJob: _evaluate, CompareJob: _compare}
    verbs[type(job)](job)


def _train(job: TrainJob) -> None:
    from icfnet.bins import TimeBins
    from icfnet.report import TREATMENT_WARNING
    from icfnet.sksurv_estimator import ICFNetSurvival
    from icfnet.sksurv_report import uses_treatment

    require_writable(job.out, "--out")
    cohort = _cohort(job)
    train = cohort if job.fold is None else cohort.split(job.fold)[0]
    bins: Any = "train" if job.bins == "train" else TimeBins.fit(cohort.time, cohort.event).edges
    model = ICFNetSurvival(
        modalities=job.modalities,
        text_model=job.text_model,
        loss=job.loss,
        bins=bins,
        race_encoding=job.race_encoding,
        width=job.width,
        epochs=job.epochs,
        batch_size=job.batch_size,
        learning_rate=job.learning_rate,
        ot_reg=job.ot_reg,
        max_patches=job.max_patches,
        device=job.device,
        seed=job.seed,
        out=job.out,
    )
    with locked(job.out, "--out"), counting() as show:
        model.fit(train, show=show)
        model.save(job.out)
    print(f"{len(train)} patients, {int(train.event.sum())} events, reads {', '.join(model.modalities_)}")
    print(f"C-index on the patients it was trained on (optimistic): {model.score(train):.3f}")
    if uses_treatment(model, train):
        print(f"warning: {TREATMENT_WARNING}")
    print(f"saved: {job.out}")


def _evaluate(job: EvaluateJob) -> None:
    from icfnet.report import Comparison
    from icfnet.sksurv_estimator import ICFNetSurvival
    from icfnet.sksurv_report import evaluate

    if job.out is not None:
        require_writable(job.out, "--out")
    assert job.fold is not None  # the job refuses it
    model = ICFNetSurvival.load(job.model, device=job.device)
    train, test = _cohort(job).split(job.fold)
    report = evaluate(model, test, train=train, groups=job.groups)
    said = [report.to_markdown()]
    compared = Comparison(reports=(report,))
    if job.against:
        with counting() as show:
            for done, arm in enumerate(job.against):
                show("baselines", done, len(job.against))
                compared = Comparison(reports=(*compared.reports, *report.compare(arm).reports[1:]))
            show("baselines", len(job.against), len(job.against))
        said.append(compared.to_markdown())
    print("\n\n".join(said))
    if job.out is not None:
        write_atomic(job.out / "report.md", "\n\n".join(said) + "\n")
        numbers = {each.name: each.metrics for each in compared.reports}
        write_atomic(job.out / "report.json", json.dumps(finite(numbers), indent=1) + "\n")
        write_figure(job.out / "kaplan_meier.png", report.figure())
        print(f"saved: {job.out / 'report.md'}, {job.out / 'report.json'}, {job.out / 'kaplan_meier.png'}")


def _compare(job: CompareJob) -> None:
    from icfnet.real_comparison import compare, load_cohort
    from icfnet.sksurv_real_tables import FILES, write_tables

    require_writable(job.out, "--out")
    with locked(job.out, "--out"), counting() as show:
        compare(job.cohort, job.out, device=job.device, show=show)
        found = write_tables(job.out, load_cohort(job.cohort))
    print("leads over folds, 95 % each, not adjusted for their number")
    print(markdown(tuple(found[0]), [tuple(row.values()) for row in found]))
    print(f"saved: {', '.join(str(job.out / name) for name in FILES)}")


def _cohort(job: CohortJob) -> Cohort:
    from icfnet.mcat import load_mcat_cohort

    cohort = load_mcat_cohort(job.csv, signatures=job.signatures, bags=job.bags, splits=job.splits)
    return cohort.without("treatment") if job.without_treatment else cohort


if __name__ == "__main__":
    sys.exit(main())

"""`timeviper report RUN`: a run as one page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from timeviper.cli.analyse import Dtype, Run


def report(
    run: Run,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that differ from the run's.")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Held-out samples to show.")] = 8,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.html", help="RUN/report.html if not said.")
    ] = None,
    dtype: Dtype = None,
) -> None:
    """Write a run as one page: scores, held-out samples with frames, survivors of TransV and answers, its curves."""
    from timeviper.analysis.log_curves import read_curves
    from timeviper.analysis.options import Words
    from timeviper.analysis.page import write_page
    from timeviper.analysis.report import chosen, show
    from timeviper.analysis.report_page import page
    from timeviper.analysis.subject import load_subject
    from timeviper.console import ProgressLine
    from timeviper.inference.eval_report import folder_of, read_report
    from timeviper.inspection.probe import gates
    from timeviper.weights.export import is_export
    from timeviper.weights.lineage import find_export

    typed = Words("report", overrides or [])
    typed.check()
    settings, export = typed.overrides, find_export(run)
    folder = folder_of(export)
    curves, warnings = read_curves(folder / "logs"), []
    if not curves:
        warnings.append(
            f"No curves: {folder / 'logs'} holds no metrics.csv and no event file (log.csv and log.tensorboard write "
            "them; an export by itself has none)."
        )
    if curves and not is_export(export):
        warnings.append(
            f"No samples and scores: {folder} has no export yet, which appears when the stage has finished."
        )
        made = page(folder.name, [("run", str(folder))], curves, None, [], {}, warnings)
    else:
        subject = load_subject(run, settings, dtype)
        with ProgressLine(sys.stderr, stays=False) as line:
            items = chosen(subject, samples) if samples else []
            shown = [*show(subject, items, lambda done: line.count(done, len(items), "samples"))]
        if not subject.recipe.model.transv.stages:
            warnings.append("This run has no TransV stage: every token of every frame survives.")
        opened = {name.removeprefix("decoder.transv."): value for name, value in gates(subject.model).items()}
        scores = read_report(run, settings)
        made = page(subject.recipe.name, subject.facts, curves, scores, shown, opened, warnings)
    print(write_page(out or folder / "report.html", made))

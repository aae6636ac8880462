"""What an evaluation leaves in a run folder: `eval.json`, the scores, and `answers.jsonl`, what was written.

Those of the stage as it is lie in the run folder; those with overrides in `evals/`, a folder for each set of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from timeviper.files import write_whole
from timeviper.inference.metrics import Answered, Scores
from timeviper.weights.export import find_export, is_export
from timeviper.weights.lineage import LINEAGE, read_lineage

REPORT, ANSWERS, OTHERS = "eval.json", "answers.jsonl", "evals"


@dataclass(frozen=True)
class Report:
    """The held-out answers of one export, scored beside three baselines."""

    scores: Scores
    """Of the model as it is."""
    blind: Scores
    """Of the same model with every frame replaced by mid-grey."""
    chance: Scores
    """Of the right answers of other questions of the same type."""
    pure_drop: Scores | None
    """Of the same schedule where dropped tokens are lost instead of transferred; None where nothing is transferred."""
    n: dict[str, int]
    """Questions: `overall`, then by type."""
    skipped: list[str]
    """Samples that could not be read, as `key: reason`."""
    checkpoint: str
    """EXPORT@STEP"""
    weights: str | None
    """Digest of the weights; None in reports of earlier versions."""
    recipe: str
    """Name of the recipe."""
    overrides: list[str] | None
    """Settings of the evaluation that differ from the recipe; None in reports of earlier versions."""
    answers: str | None
    """Digest of `answers.jsonl`; None in reports of earlier versions."""
    dtype: str | None
    """In which the answers were computed; None in reports of earlier versions."""

    def columns(self) -> dict[str, Scores]:
        """Model and baselines by the names that people see, without those that there are not."""
        drop = {} if self.pure_drop is None else {"pure drop": self.pure_drop}
        return {"TimeViper": self.scores, **drop, "blind": self.blind, "chance": self.chance}

    def as_dict(self) -> dict[str, Any]:
        """The content of `eval.json`; the model's own scores stand at its top."""
        data = asdict(self)
        return data.pop("scores") | data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """What `as_dict` made, here or in an earlier version; KeyError or TypeError for anything else."""
        _ = data["accuracy"]["overall"], data["n"]["overall"]
        drop = data["pure_drop"]
        return cls(
            scores=Scores.from_dict(data),
            blind=Scores.from_dict(data["blind"]),
            chance=Scores.from_dict(data["chance"]),
            pure_drop=None if drop is None else Scores.from_dict(drop),
            n=data["n"],
            skipped=data["skipped"],
            checkpoint=data["checkpoint"],
            weights=data.get("weights"),
            recipe=data["recipe"],
            overrides=data.get("overrides"),
            answers=data.get("answers"),
            dtype=data.get("dtype"),
        )


def write_answers(export: Path, answers: Sequence[Answered], overrides: Sequence[str]) -> str:
    """Write `answers.jsonl`, a line each with its scores; returns its digest."""
    rows = "".join(json.dumps({**asdict(a), "correct": a.correct, "iou": a.iou}) + "\n" for a in answers).encode()
    folder = report_folder(export, overrides)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / ANSWERS, rows)
    return _digest(rows)


def write_report(export: Path, report: Report) -> None:
    write_whole(report_folder(export, report.overrides or []) / REPORT, json.dumps(report.as_dict(), indent=2) + "\n")


def read_report(run: str | Path, overrides: Sequence[str] = (), dtype: str | None = None) -> Report | None:
    """The `eval.json` of exactly this export and these overrides, and of this dtype if one is asked for; else None.

    DamagedReportError names the file.
    """
    export = find_export(run)
    path = report_folder(export, overrides) / REPORT
    if not path.is_file() or not is_export(export):
        return None
    try:
        report = Report.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedReportError(path, run, f"is no report of an evaluation ({error!r})") from error
    weights = read_lineage(export).get("weights")
    by_time = path.stat().st_mtime >= (export / LINEAGE).stat().st_mtime  # all there is to go by in old exports
    fresh = report.weights == weights if weights else by_time
    same = report.overrides is not None and sorted(report.overrides) == sorted(overrides)
    return report if fresh and same and dtype in (None, report.dtype) else None


def read_answers(run: str | Path, report: Report) -> list[Answered] | None:
    """The answers behind a report of `read_report`; None if an earlier version wrote them, without digests.

    DamagedReportError names file and line, or says that they are not those of the report.
    """
    path = report_folder(find_export(run), report.overrides or []) / ANSWERS
    if report.answers is None or not path.is_file():
        return None
    raw = path.read_bytes()
    names = [f.name for f in fields(Answered)]
    found = []
    for number, line in enumerate(raw.decode(errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
            answer = Answered(*(row[name] for name in names))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DamagedReportError(path, run, f"line {number} is no answer ({error!r})") from error
        if not all(isinstance(value, str) for value in vars(answer).values()):
            raise DamagedReportError(path, run, f"line {number} is no answer (not all of {', '.join(names)} are texts)")
        found.append(answer)
    if _digest(raw) != report.answers:
        raise DamagedReportError(
            path, run, f"holds {len(found)} answers, but not those that {REPORT} beside it was made from"
        )
    return found


class DamagedReportError(ValueError):
    """A file of an evaluation that is not as it was written."""

    def __init__(self, path: Path, run: str | Path, what: str) -> None:
        super().__init__(f"{path} {what}; answer again: timeviper eval {run} --again")


def folder_of(export: Path) -> Path:
    """Where an export is evaluated."""
    return export.parent if export.name == "export" else export


def report_folder(export: Path, overrides: Sequence[str]) -> Path:
    """Where the report with these overrides goes."""
    folder = folder_of(export)
    return folder / OTHERS / _digest("\n".join(sorted(overrides)).encode()) if overrides else folder


def _digest(rows: bytes) -> str:
    return sha256(rows).hexdigest()[:16]


def print_table(report: Report) -> None:
    """Accuracy by question type, the model beside its baselines."""
    columns = report.columns()
    table = Table(title=f"{report.recipe}: held-out answers ({report.checkpoint})")
    table.add_column("question")
    for name in ("n", *columns):
        table.add_column(name, justify="right")
    for kind in report.scores.accuracy:
        row = [f"{scores.accuracy[kind]:.3f}" for scores in columns.values()]
        table.add_row(kind, str(report.n[kind]), *row, end_section=kind == "overall")
    if report.scores.miou is not None:
        table.add_row("when: mean IoU", str(report.n["when"]), *(f"{scores.miou:.3f}" for scores in columns.values()))
    Console(width=100).print(table)

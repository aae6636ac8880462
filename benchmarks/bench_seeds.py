"""Mean and spread of one recipe's held-out table over several runs, as a Markdown file.

python benchmarks/bench_seeds.py runs/tiny/stage2_instruct runs/tiny/seeds/1 ... --out benchmarks/NAME.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from datetime import date
from pathlib import Path

import torch

from timeviper.inference.eval_report import Report
from timeviper.inference.metrics import Scores

MIOU = "when: mean IoU"


def table(reports: list[Report]) -> list[str]:
    """Rows of question type by variant: mean ± sample standard deviation (min to max)."""
    first = reports[0]
    columns = {name: [figures(report.columns()[name]) for report in reports] for name in first.columns()}
    rows = [("question", "n", *columns)]
    for kind in figures(first.scores):
        spreads = (spread([each[kind] for each in column]) for column in columns.values())
        rows.append((kind, str(first.n["when" if kind == MIOU else kind]), *spreads))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def figures(scores: Scores) -> dict[str, float]:
    return scores.accuracy if scores.miou is None else scores.accuracy | {MIOU: scores.miou}


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f} ({min(values):.3f} to {max(values):.3f})"


def hardware() -> str:
    """One line about the machine."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{cpu}, {os.cpu_count()} cores"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="bench_seeds", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    reports = []
    for run in args.runs:
        path = run / "eval.json"
        if not path.is_file():
            print(f"error: {path} is missing; run `timeviper eval {run}` first", file=sys.stderr)
            return 1
        reports.append(Report.from_dict(json.loads(path.read_text())))
    text = [
        f"# {reports[0].recipe}: {len(reports)} runs",
        "",
        f"Held-out answers by greedy decoding; mean ± standard deviation (lowest to highest) over {len(reports)} seeds",
        f"of data order and new weights, from the same stage before. {hardware()}; torch {torch.__version__};",
        f"{date.today().isoformat()}.",
        "",
        "Made by `make bench-seeds`.",
        "",
        *table(reports),
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(text) + "\n")
    print("\n".join(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())

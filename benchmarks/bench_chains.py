"""Whole chains of stages, from nothing: how far runs of one recipe spread, and what other recipes in its place reach.

python benchmarks/bench_chains.py runs/tiny/chains --seeds 1 2 3 4 --before tiny/stage0_tower tiny/stage1_align \\
    --last TimeViper=tiny/stage2_instruct "pure drop=experiments/no_transfer" --out benchmarks/NAME.md

A chain is the stages before, trained from nothing with one seed, and then each of the last recipes from the same stage
before, with the same seed. What is finished is not trained again: a killed run of this command goes on.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch

from timeviper.config.shipped import find_recipe
from timeviper.inference.eval_report import Report, read_answers, read_report
from timeviper.inference.metrics import Answered, Scores
from timeviper.inference.paired import bootstrap_interval

MIOU = "when: mean IoU"


@dataclass(frozen=True)
class Finished:
    """A trained and evaluated run."""

    report: Report
    answers: list[Answered]
    transfer: dict[str, float]
    """The last figures of the TransV meter, without `transv/`."""


# ---- running --------------------------------------------------------------------------------------------


def run_chain(folder: Path, seed: int, before: Sequence[str], last: dict[str, str], overrides: Sequence[str]) -> None:
    """Train and evaluate what is not there yet."""
    start = ""
    for recipe in before:
        start = train(recipe, folder / Path(recipe).name, seed, start, overrides)
    for recipe in last.values():
        out = folder / Path(recipe).name
        train(recipe, out, seed, start, overrides)
        if not (out / "eval.json").is_file():
            command("eval", str(out))


def train(recipe: str, out: Path, seed: int, start: str, overrides: Sequence[str]) -> str:
    """The run's folder, where the next stage starts."""
    if not (out / "export").is_dir():
        given = [f"train.init_from={start}"] if start else []
        command("train", str(find_recipe(recipe)), f"seed={seed}", f"out={out}", *given, *overrides)
    return str(out)


def command(*words: str) -> None:
    started = time.monotonic()
    print("timeviper", *words, flush=True)
    subprocess.run([sys.executable, "-m", "timeviper", *words], check=True)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes", flush=True)


def finished(run: Path) -> Finished:
    report = read_report(run)
    if report is None or (answers := read_answers(run, report)) is None:
        raise SystemExit(f"error: {run} has no evaluation of its export: timeviper eval {run}")
    return Finished(report, answers, last_figures(run / "logs"))


def last_figures(logs: Path) -> dict[str, float]:
    """Of the TransV meter, from TensorBoard's file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(logs)).Reload()
    names = [name for name in found.Tags()["scalars"] if name.startswith("transv/")]
    return {name.removeprefix("transv/"): found.Scalars(name)[-1].value for name in names}


# ---- the page -------------------------------------------------------------------------------------------


def figures(scores: Scores) -> dict[str, float]:
    return scores.accuracy if scores.miou is None else scores.accuracy | {MIOU: scores.miou}


def spread(values: Sequence[float]) -> str:
    """Mean (lowest to highest)."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def scores_table(chains: dict[str, list[Finished]]) -> list[str]:
    """Rows of question type, a column for each recipe, and of the first what its weights do without transfers and
    without eyes."""
    first = next(iter(chains.values()))
    columns = {name: [figures(run.report.scores) for run in runs] for name, runs in chains.items()}
    if drops := [figures(run.report.pure_drop) for run in first if run.report.pure_drop]:
        columns |= {"transfer off": drops}  # the same weights
    columns |= {"blind": [figures(run.report.blind) for run in first]}
    columns |= {"chance": [figures(run.report.chance) for run in first]}
    rows = []
    for kind in figures(first[0].report.scores):
        count = first[0].report.n["when" if kind == MIOU else kind]
        rows.append([kind, str(count), *(spread([run[kind] for run in runs]) for runs in columns.values())])
    return table(["question", "n", *columns], rows)


def differences_table(chains: dict[str, list[Finished]]) -> list[str]:
    """The first recipe against each other one, question by question: an interval over videos, of the mean of all
    chains, and the lowest and highest chain."""
    (name, ours), *others = chains.items()
    rows = []
    for other, theirs in others:
        kinds = dict.fromkeys(["overall", *(answer.type for answer in ours[0].answers)])
        for kind in kinds:
            each, videos = [], []
            for a, b in zip(ours, theirs):
                right = {answer.key: answer.correct for answer in b.answers}
                pairs = [x for x in a.answers if x.key in right and kind in ("overall", x.type)]
                each.append(np.array([float(x.correct) - float(right[x.key]) for x in pairs]))
                videos = [x.video for x in pairs]
            means = [float(values.mean()) for values in each]
            low, high = bootstrap_interval(np.mean(each, axis=0), np.unique(videos, return_inverse=True)[1])
            rows.append([other, kind, f"{statistics.mean(means):+.3f}", f"{low:+.3f} to {high:+.3f}"])
            rows[-1].append(f"{min(means):+.3f} to {max(means):+.3f}")
    return table([f"{name} against", "question", "gains", "95 % over videos", "over chains"], rows)


def transfer_table(chains: dict[str, list[Finished]]) -> list[str]:
    """Gates, and how far compressing moves the answers."""
    names = sorted({key for runs in chains.values() for run in runs for key in run.transfer if _told(key)})
    rows = []
    for name, runs in chains.items():
        found = [[run.transfer[key] for run in runs if key in run.transfer] for key in names]
        rows.append([name, *(spread(values) if values else "" for values in found)])
    return table(["recipe", *names], rows) if names else []


def _told(key: str) -> bool:
    return key == "kl" or key.startswith("gate/")


def hardware() -> str:
    """One line about the machine."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{cpu}, {os.cpu_count()} cores"


def page(chains: dict[str, list[Finished]], title: str, made_by: str, overrides: Sequence[str]) -> str:
    count = len(next(iter(chains.values())))
    many = f"{count} whole chain{'s' * (count > 1)}"
    settings = f" Settings beside the recipes': {', '.join(overrides)}." if overrides else ""
    told = [
        f"Held-out answers by greedy decoding: mean (lowest to highest) over {many}, each from nothing",
        "with a seed of its own for weights and data order; the recipes of a chain start from the same stage before.",
        f"{hardware()}; torch {torch.__version__}; {date.today().isoformat()}.{settings}",
    ]
    parts = [[f"# {title}"], told, [f"Made by `{made_by}`."], scores_table(chains)]
    if len(chains) > 1:
        parts += [["Question by question, both answers from the same chain:"], differences_table(chains)]
    if rows := transfer_table(chains):
        parts += [["Gates at the end, and KL(answers without any stage || answers), in nats a token:"], rows]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="bench_chains", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the chains' runs lie: FOLDER/SEED/STAGE")
    parser.add_argument("--seeds", nargs="+", type=int, required=True)
    parser.add_argument("--before", nargs="+", required=True, help="recipes of the stages before, in order")
    parser.add_argument("--last", nargs="+", required=True, help="NAME=RECIPE; the first is compared with the others")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", help="key=value for all stages")
    parser.add_argument("--title", default="Whole chains")
    parser.add_argument("--made-by", default="benchmarks/bench_chains.py")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    last = dict(name.split("=", 1) for name in args.last)
    chains: dict[str, list[Finished]] = {name: [] for name in last}
    for seed in args.seeds:
        folder = args.folder / str(seed)
        run_chain(folder, seed, args.before, last, args.overrides)
        for name, recipe in last.items():
            chains[name].append(finished(folder / Path(recipe).name))
        text = page(chains, args.title, args.made_by, args.overrides)  # after each chain: what is there can be read
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    print(args.out.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())

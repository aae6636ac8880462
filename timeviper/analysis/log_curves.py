"""The curves of a run's log, from its CSV files or from TensorBoard's event files, whichever are there."""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

Curve = list[tuple[int, float]]
"""(step, value) in order of the steps."""
START = re.compile(r"from-step-(\d+)")  # a folder for each start of the run


def read_curves(logs: Path) -> dict[str, Curve]:
    """Every logged number by name; empty if the folder holds no log. What a later start repeated counts once."""
    files = sorted(logs.glob("from-step-*/metrics.csv"), key=_start)
    return _of_csv(files) if files else _of_events(logs)


def thinned(curve: Curve, most: int) -> Curve:
    """At most `most` points: means of points beside each other."""
    if len(curve) <= most:
        return curve
    edges = [len(curve) * i // most for i in range(most + 1)]
    parts = [curve[a:b] for a, b in zip(edges, edges[1:])]  # noqa: RUF007
    return [(part[-1][0], sum(v for _, v in part) / len(part)) for part in parts]


def _start(path: Path) -> int:
    found = START.search(str(path))
    return int(found[1]) if found else 0


def _of_csv(files: Sequence[Path]) -> dict[str, Curve]:
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for path in files:
        for points in found.values():  # a start from a checkpoint does again what came behind it
            for step in [step for step in points if step > _start(path)]:
                del points[step]
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                step = _number(row.get("step"))
                for name, text in row.items():
                    value = _number(text)
                    if name and name not in ("step", "epoch") and math.isfinite(step) and math.isfinite(value):
                        found[name][int(step)] = value
    return {name: sorted(points.items()) for name, points in sorted(found.items()) if points}


def _number(text: object) -> float:
    try:
        return float(str(text))
    except ValueError:
        return math.nan


def _of_events(logs: Path) -> dict[str, Curve]:
    if not any(logs.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # a second, and rarely needed

    events = EventAccumulator(str(logs), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: sorted({e.step: e.value for e in events.Scalars(tag)}.items()) for tag in _tags(events.Tags())}


def _tags(tags: Mapping[str, object]) -> Iterator[str]:
    scalars = tags.get("scalars")
    return (tag for tag in sorted(scalars if isinstance(scalars, list) else []) if tag not in ("epoch", "hp_metric"))

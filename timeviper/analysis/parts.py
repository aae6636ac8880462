"""Figures of held-out samples, pack by pack: kept as they come, so that what was stopped continues, then joined."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from timeviper.analysis.samples import Samples
from timeviper.analysis.scores import MEASURES, Band, Scores, band, videos
from timeviper.analysis.subject import Subject
from timeviper.inference.journal import digest_of
from timeviper.inference.paired import FEW
from timeviper.pack import Pack

Tell = Callable[[int, int, str], None]
"""Told of passes done, of how many, and of what kind."""


def gather(
    samples: Samples,
    kept: Path,
    settings: Sequence[Any],
    passes: Callable[[Pack], Iterable[tuple[Any, Scores]]],
    about: Callable[[Pack], dict[str, Any]],
    each: int,
    tell: Tell,
    unit: str,
) -> tuple[Measured, list[dict[str, Any]]]:
    """Scores of all packs together, those that `kept` has from before and others measured now; and what `about` said.

    settings: what figures depend on beside the run. passes: of a pack, what was done (a name, or what has one) and its
    scores, `each` times. about: more to keep of a pack. AnalysisError where no held-out sample has frames, or can be
    read.
    """
    parts, total = Parts(kept, digest_of_settings(samples.subject, *settings)), each * len(samples.bins)
    for number, items in enumerate(samples.bins):
        if number in parts.found:
            continue
        before, found = len(samples.skipped), dict[str, Any](keys=[])
        if (pack := samples.pack(items)) is not None:
            found = {"keys": pack.keys, **about(pack), "scores": {}}
            for done, (what, scores) in enumerate(passes(pack), 1):
                found["scores"][getattr(what, "name", what)] = [getattr(scores, m) for m in MEASURES]
                tell(number * each + done, total, unit)
        parts.add(number, found | {"skipped": samples.skipped[before:]})
    every = [parts.found[number] for number in range(len(samples.bins))]
    samples.skipped = [reason for part in every for reason in part["skipped"]]
    if not (there := [part for part in every if part["keys"]]):
        raise samples.none_read()
    names, segments = there[0]["scores"], samples.subject.model.decoder.segments
    scores = {name: Scores.join([Scores(*part["scores"][name]) for part in there]) for name in names}
    stages = {s.name: vars(s.stage) for s in segments if s.stage is not None}
    keys = [key for part in there for key in part["keys"]]
    return Measured(samples.subject.layout, stages, scores, keys, samples.skipped), there


@dataclass
class Measured:
    """What was found, by sample; all that pages and files show is made from it."""

    layout: str
    stages: dict[str, dict[str, Any]]
    """TransV of the run."""
    scores: dict[str, Scores]
    """By the name of what was done to the model; `[n]` each."""
    keys: list[str]
    skipped: list[str]

    @cached_property
    def clusters(self) -> np.ndarray:
        return videos(self.keys)

    @cached_property
    def bands(self) -> dict[tuple[str, str], Band]:
        """By name and measure."""
        return {(name, m): self.band_of(scores, m) for name, scores in self.scores.items() for m in MEASURES}

    def band_of(self, scores: Scores, measure: str) -> Band:
        return band(getattr(scores, measure), self.clusters)

    def difference(self, a: Scores, b: Scores, measure: str) -> Band:
        """b - a, paired by sample."""
        return band(np.subtract(getattr(b, measure), getattr(a, measure)).tolist(), self.clusters)

    @property
    def facts(self) -> list[tuple[str, object]]:
        """For the head of a page."""
        return [
            ("TransV stages", "; ".join(f"{n} before block {s['layer']}" for n, s in self.stages.items()) or "none"),
            ("samples", len(self.keys)),
            ("videos", len({*self.clusters.tolist()})),
        ]

    def doubts(self) -> list[str]:
        """Warnings that the samples call for."""
        told = []
        if (count := len({*self.clusters.tolist()})) < FEW:
            told.append(f"Only {count} videos: with fewer than {FEW} the bands are too narrow.")
        if self.skipped:
            told.append(f"{len(self.skipped)} samples could not be read, the first: {self.skipped[0]}")
        return told


def digest_of_settings(subject: Subject, *settings: Any) -> str:
    """16 hexadecimal digits of all that figures depend on: weights, recipe, precision and what is asked."""
    computed = str(next(subject.model.parameters()).dtype)
    known = digest_of(subject.export, subject.recipe, computed)
    return sha256(json.dumps([known, settings]).encode()).hexdigest()[:16]


class Parts:
    """A file of lines: figures of packs by number, of one digest; those of another are thrown away."""

    def __init__(self, path: Path, digest: str) -> None:
        self.path, self.digest = path, digest
        self.found: dict[int, dict[str, Any]] = {}
        whole = ""
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else ():
            try:
                entry = json.loads(line)
                if entry["digest"] == digest and line.endswith("\n"):
                    self.found[entry["pack"]] = entry["figures"]
                    whole += line
            except (ValueError, KeyError, TypeError):
                continue  # the process ended while it wrote
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(whole, encoding="utf-8")

    def add(self, pack: int, figures: Mapping[str, Any]) -> None:
        self.found[pack] = dict(figures)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"digest": self.digest, "pack": pack, "figures": figures}) + "\n")

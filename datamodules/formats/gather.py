"""Samples in an order in which those about the same files stand together, each with a key of its own.

Sets of questions have ten entries a video, sets of captions twenty; the writer stores a file once a shard.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timeviper.datamodules.shards.writer import Payload, Sample
from timeviper.datamodules.when import WHEN


class Gathered:
    """Takes samples one by one; `samples` are in the order in which their files are first mentioned."""

    def __init__(self) -> None:
        self._of_files: dict[object, list[Sample]] = {}
        self._moments: dict[object, tuple[str, Mapping[str, Payload], list[dict[str, Any]]]] = {}
        self._keys = _Keys()

    def add(self, key: str, record: dict[str, Any], files: Mapping[str, Payload]) -> None:
        about = tuple(_place(payload) for payload in files.values())
        if (
            about
            and record.get("segments")
            and all(talk.get("type") in (WHEN, "times") for talk in record["conversations"])
        ):
            if about not in self._moments:
                self._moments[about] = (self._keys.unique(key), files, [])
                self._of_files.setdefault(about, [])
            self._moments[about][2].append(record)
            return
        key = self._keys.unique(key, expected=about in self._of_files)
        self._of_files.setdefault(about or key, []).append(_sample(key, record, files))

    def samples(self) -> list[Sample]:
        """The moments of a video are one sample, whose segments tell them all."""
        found = []
        for about, together in self._of_files.items():
            if about in self._moments:
                key, files, records = self._moments[about]
                found.append(_sample(key, _joined(records), files))
            found += together
        return found

    def notes(self) -> list[str]:
        return self._keys.notes()


def _sample(key: str, record: dict[str, Any], files: Mapping[str, Payload]) -> Sample:
    return {"__key__": key, "json": json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode(), **files}


def _joined(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What entries say alike stays beside the sample, the rest (an id) beside the question that it came with."""
    if len(records) == 1:
        return records[0]
    apart = ("media", "conversations", "segments")
    own = [{name: value for name, value in record.items() if name not in apart} for record in records]
    alike = {n: v for n, v in own[0].items() if all(n in other and other[n] == v for other in own[1:])}
    talks = [
        {**{name: value for name, value in mine.items() if name not in alike}, **talk}
        for record, mine in zip(records, own)
        for talk in record["conversations"]
    ]
    segments = [segment for record in records for segment in record["segments"]]
    return {**alike, "conversations": talks, "segments": segments, "media": records[0]["media"]}


def _place(payload: Payload) -> object:
    return os.path.normpath(payload) if isinstance(payload, Path) else payload


class _Keys:
    """Two files of one name in two folders, or two entries with one id, get keys of their own."""

    def __init__(self) -> None:
        self.used: dict[str, int] = {}
        self.renamed: list[str] = []

    def unique(self, key: str, expected: bool = False) -> str:
        """The key, with a number if it is used; that is nothing to speak of where it is `expected`."""
        number, found = self.used.get(key, 1), key
        while found in self.used:
            number += 1
            found = f"{key}-{number}"
        self.used[key] = number
        if found != key:
            self.used[found] = 1
            self.renamed += [] if expected else [found]
        return found

    def notes(self) -> list[str]:
        if not self.renamed:
            return []
        few = ", ".join(self.renamed[:3])
        return [f"{len(self.renamed)} keys are used more than once; the later ones got a number ({few} ...)"]

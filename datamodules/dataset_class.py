"""A Python class as a source of data: three methods, named in the recipe as `module:Class`.

    class Clips:
        def __len__(self) -> int: ...
        def record(self, i: int) -> dict: ...              # the json of sample i, as docs/your-data.md describes it
        def open(self, i: int, member: str): ...           # its medium `member`: a path, bytes, or a binary file

The plan asks for every record once, at the start, or for the `lengths` of all in one call (`class_lengths.py`); media
are opened by the loader processes, in any order.
Each process makes an object of its own, so nothing of it has to be picklable.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol

from timeviper.config.plugin import find_class
from timeviper.datamodules.class_lengths import CHECKED, difference, keep, kept_file, read_kept, records
from timeviper.datamodules.shards.index import SampleRecord, ShardIndex, conversation_sizes, measured
from timeviper.datamodules.shards.schema import parse_record


class Dataset(Protocol):
    """What a class must offer."""

    def __len__(self) -> int:
        """Number of samples; the same in every process and at every start."""
        ...

    def record(self, i: int) -> dict[str, Any]:
        """The json of sample `i`: media (type, member, duration, fps, frames) and messages or conversations."""
        ...

    def open(self, i: int, member: str) -> str | Path | bytes | IO[bytes]:
        """The medium that `record(i)` calls `member`."""
        ...


METHODS = ("__len__", "record", "open")


class ClassDataset:
    """A user's class, checked: every error is a ValueError with the class, the item and what went wrong."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        """`name` is `module:Class`, found from the folder where the run starts; `options` are its arguments."""
        self.name, self.options = name, options
        self._made: Dataset | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    @property
    def made(self) -> Dataset:
        if self._made is None:
            cls = _find(self.name)
            made: Dataset = self._call("constructor", lambda: cls(**self.options))
            self._made = made
        return self._made

    def index(self) -> ShardIndex:
        """All samples as the plan knows them. Videos whose record states no length are opened to measure it."""
        count = self._call("__len__", self.made.__len__)
        if callable(getattr(self.made, "lengths", None)):
            return ShardIndex(self.name, 0, tuple(self._stated(count)))
        return ShardIndex(self.name, 0, tuple(self._sample(str(i)) for i in range(count)))

    def _stated(self, count: int) -> list[SampleRecord]:
        """All samples by the lengths that the class states, kept from start to start if it has a version.

        ValueError if they are not as many as the samples, or if those that are looked at differ from their records.
        """
        version = str(getattr(self.made, "version", ""))
        kept = kept_file(self.name, self.options, version, count)
        if version and (there := read_kept(kept, count)) is not None:
            return there
        made: Any = self.made
        said = self._call("lengths()", lambda: list(made.lengths()))
        try:
            stated = [*records(said)]
        except ValueError as error:
            raise ValueError(f"{self.name}.{error}") from error
        found = [record for _, record in stated]
        if len(found) != count:
            raise ValueError(f"{self.name}.lengths() states {len(found)} samples, but __len__ says {count}")
        for i in sorted({round(k * (count - 1) / (CHECKED - 1)) for k in range(CHECKED)} if count else ()):
            if wrong := difference(found[i], self._sample(str(i))):
                raise ValueError(f"{self.name}.record({i}) has {wrong}; mend lengths(), and give it another version")
        if version:
            keep(kept, [one for one, _ in stated])
        return found

    def record(self, key: str, planned: SampleRecord | None = None) -> dict[str, Any]:
        """The checked json of the sample with this key, which is its number.

        ValueError if it is not as it was `planned`. Lengths that the record does not state are the planned ones.
        """
        found = self._record(key)
        if planned is not None and callable(getattr(self.made, "lengths", None)):
            if len(found["media"]) == len(planned.each):
                for medium, length in zip(found["media"], planned.each):
                    if medium["type"] == "video" and not medium.get("duration"):
                        medium["duration"] = length.duration
            sizes = tuple(conversation_sizes(c, len(found["media"])) for c in found["conversations"])
            media = [{"fps": 1.0, "frames": 1, "duration": 0.0, **m} for m in found["media"]]
            if wrong := difference(planned, SampleRecord.of(key, {}, media, sizes)):
                raise ValueError(f"{self.name}.record({key}) has {wrong}; mend lengths(), and give it another version")
        return found

    def _record(self, key: str) -> dict[str, Any]:
        i = int(key)
        made = self.made
        found = self._call(f"record({i})", lambda: made.record(i))
        try:
            raw = json.dumps(found).encode()
            members = [str(m.get("member")) for m in found.get("media") or [] if isinstance(m, dict)]
            return parse_record(raw, members)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{self.name}.record({i}): {error}") from error

    def open(self, key: str, member: str) -> str | Path | IO[bytes]:
        """One medium, as PyAV takes it."""
        i = int(key)
        made = self.made
        found = self._call(f"open({i}, {member!r})", lambda: made.open(i, member))
        if isinstance(found, bytes):
            return io.BytesIO(found)
        if not isinstance(found, str | Path) and not (hasattr(found, "read") and hasattr(found, "seek")):
            raise ValueError(
                f"{self.name}.open({i}, {member!r}) returned {type(found).__name__}; "
                "return a path, bytes, or a binary file that can seek"
            )
        return found

    def _sample(self, key: str) -> SampleRecord:
        record = self._record(key)
        media = [measured(m, lambda m=m: self.open(key, m["member"])) for m in record["media"]]
        sizes = tuple(conversation_sizes(c, len(media)) for c in record["conversations"])
        return SampleRecord.of(key, {}, media, sizes)

    def _call(self, what: str, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:  # a stranger's code may raise anything
            raise ValueError(f"{self.name}.{what} failed: {type(error).__name__}: {error}") from error


def _find(name: str) -> type:
    """The class behind `module:Class`."""
    found = find_class(name)
    if lacks := [method for method in METHODS if not callable(getattr(found, method, None))]:
        raise ValueError(f"{name} lacks {', '.join(lacks)}; a dataset has the methods {', '.join(METHODS)}")
    return found

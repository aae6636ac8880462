"""Columns made: of objects, and of other columns, of which a new shard is only a few more."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from timeviper.datamodules.shards.block_sums import WIDTH
from timeviper.datamodules.shards.columns import FLOATS, LEVELS, MEDIA, NAMES, STARTS, WORDS, Arrays, Columns
from timeviper.datamodules.shards.index_file import SampleRecord, ShardIndex, line


def columns_of(shards: Iterable[ShardIndex], beside: str = "") -> Columns:
    """Of objects, which may come one after the other: some 15 us a sample. `beside`: as in `Columns`."""
    made = _Builder()
    for shard in shards:
        made.add(shard, shard.name if beside else shard.location)
    return Columns(made.arrays(), beside)


def joined(parts: Sequence[Columns]) -> Iterator[tuple[str, np.dtype, int, Iterator[np.ndarray]]]:
    """Name, type, length and pieces of every array of `parts` one after the other, so that a file may be larger than
    memory. Shards keep the place that they are beside only where that is the same for all."""
    used = [{name: np.unique(part.arrays[name]) for name in WORDS} for part in parts]
    found = {part.words[code] for part, codes in zip(parts, used) for array in codes.values() for code in array}
    words = {word: code for code, word in enumerate(sorted(found | {""}))}
    recoded = [np.array([words.get(word, 0) for word in part.words], np.int64) for part in parts]
    spelled = [word.encode() for word in words]
    yield _one("letter_start", np.array([0, *accumulate(map(len, spelled))], np.int64))
    yield _one("letter", np.frombuffer(b"".join(spelled), np.uint8))
    for name in NAMES:
        if name.startswith("letter"):
            continue
        each = [part.arrays[name] for part in parts]
        if name.endswith("_start"):
            shifts = [0, *accumulate(int(starts[-1]) for starts in each)]
            yield name, _narrow_int(shifts[-1]), sum(map(len, each)) - len(each) + 1, _shifted(each, shifts)
        elif name in WORDS:
            yield name, _narrow_int(len(words) - 1), sum(map(len, each)), _recoded(each, recoded)
        else:
            dtype = _narrow_float(each) if name in FLOATS else _narrow_int(max(map(_largest, each), default=0))
            yield name, dtype, sum(map(len, each)), iter(each)


def _shifted(each: list[np.ndarray], shifts: list[int]) -> Iterator[np.ndarray]:
    for i, (starts, shift) in enumerate(zip(each, shifts)):
        yield starts[min(i, 1) :].astype(np.int64) + shift


def _recoded(each: list[np.ndarray], codes: list[np.ndarray]) -> Iterator[np.ndarray]:
    return (code[array] for array, code in zip(each, codes))


def _largest(array: np.ndarray) -> int:
    return int(array.max(initial=0))


def pick(columns: Columns, numbers: Sequence[int]) -> Columns:
    """Some of its shards in this order; the columns themselves where it is all of them."""
    if len(numbers) == len(columns) and all(i == number for i, number in enumerate(numbers)):
        return columns
    return join(runs(columns, numbers))


def runs(columns: Columns, numbers: Sequence[int]) -> list[Columns]:
    """The shards of these numbers, those that follow each other as one part."""
    cuts = [0, *(i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1), len(numbers)]
    return [columns.shards(numbers[a], numbers[b - 1] + 1) for a, b in pairwise(cuts) if b > a]


def join(parts: Sequence[Columns]) -> Columns:
    """All of them in memory, in this order."""
    places = {part.beside for part in parts}
    if len(places) > 1:
        parts = [_spelled_out(part) for part in parts]
    arrays = {}
    for name, dtype, length, pieces in joined(parts):
        array, at = np.empty(length, dtype), 0
        for piece in pieces:
            array[at : at + len(piece)] = piece
            at += len(piece)
        arrays[name] = array
    return Columns(arrays, places.pop() if len(places) == 1 else "")


def _spelled_out(part: Columns) -> Columns:
    """With the locations of its shards for their names."""
    names = [location.encode() for location in part.locations()]
    starts = np.array([0, *accumulate(map(len, names))], np.int64)
    return Columns({**part.arrays, "name": np.frombuffer(b"".join(names), np.uint8), "name_start": starts})


def _one(name: str, array: np.ndarray) -> tuple[str, np.dtype, int, Iterator[np.ndarray]]:
    return name, _narrow_int(_largest(array)), len(array), iter([array])


def _narrow_int(largest: int) -> np.dtype:
    return next(np.dtype(t) for t in ("u1", "<u2", "<u4", "<u8") if largest <= np.iinfo(t).max)


def _narrow_float(parts: Iterable[np.ndarray]) -> np.dtype:
    exact = all(np.array_equal(a.astype(np.float32), a, equal_nan=True) for a in parts)
    return np.dtype("<f4" if exact else "<f8")


class _Builder:
    """Lists that become arrays."""

    def __init__(self) -> None:
        self.lists: dict[str, list[Any]] = {name: [] for name in NAMES}
        self.texts = {name: bytearray() for name in ("name", "key", "sum")}
        self.words: dict[str, int] = {"": 0}
        for part in STARTS:
            self.lists[f"{part}_start"].append(0)

    def add(self, shard: ShardIndex, place: str) -> None:
        crc = zlib.crc32(line(shard)) if shard.crc32 is None else shard.crc32
        self._append("shard", shard.bytes, crc)
        self._spell("name", place)
        for record in shard.samples:
            self._sample(record)
        self.lists["sample_start"].append(len(self.lists["media"]))

    def arrays(self) -> Arrays:
        """As narrow as they may be, words in order."""
        spelled = [word.encode() for word in self.words]
        self.lists["letter_start"] = [0, *accumulate(map(len, spelled))]
        whole = {n: np.frombuffer(bytes(text), "<u4" if n == "sum" else "u1") for n, text in self.texts.items()}
        whole["letter"] = np.frombuffer(b"".join(spelled), np.uint8)
        wide = {n: np.array(values, np.float64 if n in FLOATS else np.int64) for n, values in self.lists.items()}
        return join([Columns(wide | whole)]).arrays

    def _append(self, level: str, *values: Any) -> None:
        for name, value in zip(LEVELS[level], values, strict=True):
            self.lists[name].append(value)

    def _spell(self, part: str, text: str | bytes) -> None:
        raw = text.encode() if isinstance(text, str) else text
        self.texts[part] += raw
        self.lists[f"{part}_start"].append(len(self.texts[part]) // (WIDTH if part == "sum" else 1))

    def _word(self, word: str) -> int:
        return self.words.setdefault(word, len(self.words))

    def _sample(self, record: SampleRecord) -> None:
        spacing = float("nan") if record.keyframe_spacing is None else record.keyframe_spacing
        self._append("sample", MEDIA.index(record.media), record.fps, spacing, self._word(record.fingerprint or ""))
        self._spell("key", record.key)
        for name, where in record.members.items():
            self._append("member", self._word(name), *where)
            self._spell("sum", record.blocks.get(name, b""))
        for length in record.each:
            self._append("medium", *length)
        for talk in record.conversations:
            self._append("talk", self._word(talk.type), talk.text_bytes, talk.answer_bytes)
            for turn in talk.turns:
                self._append("turn", *turn)
            self.lists["turn_start"].append(len(self.lists["turn_text"]))
        for part, level in (("member", "member_name"), ("medium", "medium_frames"), ("talk", "talk_type")):
            self.lists[f"{part}_start"].append(len(self.lists[level]))

"""What the indexes of many shards say, as arrays: about 100 bytes a sample, and no object a sample.

An array holds one thing of all shards, samples, members, media, conversations or turns, one after the other. Which of
them belong together tell the `_start` arrays: the media of sample `i` are those from `medium_start[i]` up to
`medium_start[i + 1]`. Texts (keys, names) are bytes that lie in a row; those that come again and again (fields, types
of conversations) stand once, as `words`, and are counted from 0. Integers have as many bytes as the largest needs, and
fractions four where these are enough for every bit. So the same shards give the same bytes, however they came together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, overload

import numpy as np

from timeviper.datamodules.frames.share import Length
from timeviper.datamodules.shards.address import file_name, near
from timeviper.datamodules.shards.index_file import Conversation, SampleRecord, ShardIndex, Turn
from timeviper.datamodules.shards.tar import Slice

Arrays = dict[str, np.ndarray]

MEDIA = ("none", "image", "video")
# What `X_start` divides, and whose parts these are.
STARTS = {
    "sample": "shard",
    "name": "shard",  # of the tar, or its whole path or URL
    "key": "sample",
    "member": "sample",
    "sum": "member",  # of its blocks (block_sums.py)
    "medium": "sample",
    "talk": "sample",
    "turn": "talk",  # none where a conversation has one
    "letter": "word",
}
WORDS = ("fingerprint", "member_name", "talk_type")  # arrays of numbers of words
FLOATS = ("fps", "spacing", "medium_seconds")
LEVELS = {
    "shard": ("shard_bytes", "shard_crc32"),
    "sample": ("media", "fps", "spacing", "fingerprint"),
    "member": ("member_name", "member_offset", "member_size", "member_crc32"),
    "medium": ("medium_seconds", "medium_frames"),
    "talk": ("talk_type", "talk_text", "talk_answer"),
    "turn": ("turn_text", "turn_answer", "turn_media"),
    **{own: (own,) for own in ("sum", "name", "key", "letter")},
}
NAMES = (*(f"{part}_start" for part in STARTS), *chain.from_iterable(LEVELS.values()))


@dataclass(frozen=True)
class Facts:
    """What the plan reads of some units, in their order: int64 but for the seconds."""

    media_start: np.ndarray
    """`[units + 1]` where the media of each begin."""
    seconds: np.ndarray
    """`[media]`; 0 for an image."""
    frames: np.ndarray
    """`[media]`; 1 for an image."""
    turns_start: np.ndarray
    """`[units + 1]` where the turns of each begin; every unit has one at least."""
    text: np.ndarray
    """`[turns]` UTF-8 bytes of the question and its answer."""
    answer: np.ndarray
    """`[turns]` those of the answer."""
    media: np.ndarray
    """`[turns]` media that stand in the question."""


@dataclass(frozen=True, eq=False)
class Columns(Sequence[ShardIndex]):
    """Many shards. As a sequence it makes the objects of one shard when that is asked for."""

    arrays: Arrays
    beside: str = ""
    """A file in the folder of the shards, where their names alone are held."""
    is_mapped: bool = False
    """Whether the arrays lie in a file that all processes of a node map."""

    def __len__(self) -> int:
        return len(self.arrays["shard_bytes"])

    @overload
    def __getitem__(self, number: int) -> ShardIndex: ...
    @overload
    def __getitem__(self, number: slice) -> list[ShardIndex]: ...
    def __getitem__(self, number: int | slice) -> ShardIndex | list[ShardIndex]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        shard = number % len(self)
        samples = np.arange(*self.arrays["sample_start"][shard : shard + 2].tolist())
        return ShardIndex(self.location(shard), int(self.arrays["shard_bytes"][shard]), tuple(self._whole(samples)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))

    @property
    def samples(self) -> int:
        return len(self.arrays["media"])

    @property
    def talks(self) -> int:
        """Conversations."""
        return len(self.arrays["talk_type"])

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays.values())

    @cached_property
    def words(self) -> list[str]:
        return [*texts(self.arrays["letter"], self.arrays["letter_start"])]

    def location(self, shard: int) -> str:
        """Path or URL of the tar."""
        held = _text(self.arrays["name"], self.arrays["name_start"], shard)
        return near(self.beside, held) if self.beside else held

    def locations(self) -> list[str]:
        """Of all tars."""
        held = texts(self.arrays["name"], self.arrays["name_start"])
        return [near(self.beside, name) for name in held] if self.beside else [*held]

    def names(self) -> list[str]:
        """Of all tars, without the folders."""
        held = texts(self.arrays["name"], self.arrays["name_start"])
        return [*held] if self.beside else [file_name(place) for place in held]

    def shard_of(self, sample: int) -> int:
        return _owner(self.arrays["sample_start"], sample)

    def sample_of(self, talk: int) -> int:
        """The sample that a conversation is about."""
        return talk if self.talks == self.samples else _owner(self.arrays["talk_start"], talk)

    def key(self, sample: int) -> str:
        return _text(self.arrays["key"], self.arrays["key_start"], sample)

    def first_talk(self, sample: int) -> int:
        return int(self.arrays["talk_start"][sample])

    def talks_of_shards(self) -> np.ndarray:
        """`[shards + 1]` where the conversations of each shard begin, int64."""
        return self.arrays["talk_start"][self.arrays["sample_start"].astype(np.int64)].astype(np.int64)

    def lengths(self, sample: int) -> tuple[Length, ...]:
        """Of each medium, in the order of the json."""
        rows = slice(*self.arrays["medium_start"][sample : sample + 2].tolist())
        return tuple(Length(*length) for length in self._rows(LEVELS["medium"], rows))

    def _rows(self, names: tuple[str, ...], rows: np.ndarray | slice) -> Iterator[tuple[Any, ...]]:
        return zip(*(self.arrays[name][rows].tolist() for name in names))

    def record(self, sample: int) -> SampleRecord:
        """All that the index says of a sample."""
        return next(self._whole(np.array([sample])))

    def records_of(self, talks: np.ndarray) -> list[SampleRecord]:
        """The samples of conversations, int `[n]`, each with that one alone: if they are many, some 10 us each."""
        return [*self._records(self.samples_of_talks(talks), np.arange(len(talks) + 1), talks)]

    def _whole(self, samples: np.ndarray) -> Iterator[SampleRecord]:
        return self._records(samples, *_spread(self.arrays["talk_start"], samples))

    def _records(self, samples: np.ndarray, talk_start: np.ndarray, talks: np.ndarray) -> Iterator[SampleRecord]:
        """Samples with some of their conversations. Columns are read for all of them at once: to read costs more than
        what is read."""
        a, words = self.arrays, self.words
        member_start, members = _spread(a["member_start"], samples)
        medium_start, media = _spread(a["medium_start"], samples)
        names = [words[code] for code in a["member_name"][members].tolist()]
        places = [Slice(*where) for where in self._rows(LEVELS["member"][1:], members)]
        sums = [*zip(a["sum_start"][members].tolist(), a["sum_start"][members + 1].tolist())]
        lengths = [Length(*length) for length in self._rows(LEVELS["medium"], media)]
        spoken = self._conversations(talks)
        keys = zip(a["key_start"][samples].tolist(), a["key_start"][samples + 1].tolist())
        plain = self._rows(LEVELS["sample"], samples)
        edges = zip(*(pairwise(starts.tolist()) for starts in (member_start, medium_start, talk_start)))
        for (first, last), (kind, fps, spacing, mark), (held, seen, said) in zip(keys, plain, edges):
            own, each = range(*held), tuple(lengths[slice(*seen)])
            yield SampleRecord(
                key=a["key"][first:last].tobytes().decode(),
                members={names[i]: places[i] for i in own},
                media=MEDIA[kind],
                duration=float(sum(length.duration for length in each)),
                fps=fps,
                frames=sum(length.frames for length in each),
                conversations=tuple(spoken[slice(*said)]),
                keyframe_spacing=None if spacing != spacing else spacing,
                fingerprint=words[mark] or None,
                blocks={
                    names[i]: a["sum"][slice(*sums[i])].astype("<u4").tobytes() for i in own if sums[i][0] < sums[i][1]
                },
                lengths=each if len(each) > 1 else (),
            )

    def _conversations(self, talks: np.ndarray) -> list[Conversation]:
        start, rows = _spread(self.arrays["turn_start"], talks)
        turns = [Turn(*turn) for turn in self._rows(LEVELS["turn"], rows)]
        told = zip(self._rows(LEVELS["talk"], talks), pairwise(start.tolist()))
        return [
            Conversation(self.words[kind], text, answer, tuple(turns[i:j])) for (kind, text, answer), (i, j) in told
        ]

    def samples_of_talks(self, talks: np.ndarray) -> np.ndarray:
        """`sample_of` of many, int `[n]`."""
        return talks if self.talks == self.samples else _owners(self.arrays["talk_start"], talks)

    def places_of(self, talks: np.ndarray) -> list[tuple[str, int]]:
        """Of conversations, int `[n]`: path or URL of the tar, and the number in the json."""
        samples = self.samples_of_talks(talks)
        shards, numbers = _owners(self.arrays["sample_start"], samples), talks - self.arrays["talk_start"][samples]
        named = {shard: self.location(shard) for shard in {*shards.tolist()}}
        return [(named[shard], number) for shard, number in zip(shards.tolist(), numbers.tolist())]

    def facts(self, talks: np.ndarray) -> Facts:
        """Of these conversations, int `[units]`, in one go: below a microsecond each."""
        a = self.arrays
        samples = self.samples_of_talks(talks)
        media_start, media = _spread(a["medium_start"], samples)
        turns_start, turns = _spread(a["turn_start"], talks)
        several = np.diff(turns_start) > 0
        at = np.arange(len(talks)) + np.cumsum(np.concatenate([[0], np.maximum(np.diff(turns_start), 1) - 1]))[:-1]
        found = [np.zeros(len(turns) + int((~several).sum()), np.int64) for _ in range(3)]
        whole = np.ones(len(found[0]), bool)
        whole[at[~several]] = False
        alone = (a["talk_text"][talks[~several]], a["talk_answer"][talks[~several]], np.diff(media_start)[~several])
        for array, one, many in zip(found, alone, (a[name][turns] for name in LEVELS["turn"])):
            array[~whole], array[whole] = one, many
        return Facts(
            media_start,
            a["medium_seconds"][media].astype(np.float64),
            a["medium_frames"][media].astype(np.int64),
            np.append(at, len(found[0])),
            *found,
        )

    def shards(self, first: int, last: int) -> Columns:
        """Those from `first` up to `last`; nothing is copied but what says where parts begin."""
        bounds, arrays = {"shard": (first, last), "word": (0, len(self.arrays["letter_start"]) - 1)}, {}
        for part, whole in STARTS.items():
            begin, end = bounds[whole]
            starts = self.arrays[f"{part}_start"][begin : end + 1].astype(np.int64)
            bounds[part] = (int(starts[0]), int(starts[-1]))
            arrays[f"{part}_start"] = starts - starts[0]
        for level, names in LEVELS.items():
            arrays |= {name: self.arrays[name][slice(*bounds[level])] for name in names}
        return replace(self, arrays=arrays)


def check(arrays: Arrays) -> None:
    """ValueError unless all parts fit together."""
    if missing := sorted(set(NAMES) - arrays.keys()):
        raise ValueError(f"lacks {', '.join(missing)}")
    sizes: dict[str, int] = {}
    for level, names in LEVELS.items():
        found = {len(arrays[name]) for name in names}
        if len(found) > 1:
            raise ValueError(f"has columns of {sorted(found)} rows for one {level}")
        sizes[level] = found.pop()
    sizes["word"] = max(len(arrays["letter_start"]) - 1, 0)
    for part, whole in STARTS.items():
        starts = arrays[f"{part}_start"]
        if len(starts) != sizes[whole] + 1 or int(starts[0]) or int(starts[-1]) != sizes[part]:
            raise ValueError(f"does not divide {sizes[part]} {part}s among {sizes[whole]} {whole}s")


def _owner(starts: np.ndarray, number: int) -> int:
    """Which part holds `number`; those without any are passed over."""
    return int(np.searchsorted(starts, starts.dtype.type(number), "right")) - 1


def _owners(starts: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """`_owner` of many, int64 `[n]`."""
    return np.searchsorted(starts, numbers.astype(starts.dtype), "right") - 1


def _spread(starts: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the things of each of `rows` begin when they are laid in a row, `[rows + 1]`, and their old numbers."""
    first = starts[rows].astype(np.int64)
    begin = np.concatenate([[0], np.cumsum(starts[rows + 1].astype(np.int64) - first)])
    return begin, np.arange(begin[-1]) + np.repeat(first - begin[:-1], np.diff(begin))


def _text(letters: np.ndarray, starts: np.ndarray, number: int) -> str:
    first, last = starts[number : number + 2].tolist()
    return letters[first:last].tobytes().decode()


def texts(letters: np.ndarray, starts: np.ndarray) -> Iterator[str]:
    whole, bounds = letters.tobytes(), starts.tolist()
    return (whole[a:b].decode() for a, b in pairwise(bounds))

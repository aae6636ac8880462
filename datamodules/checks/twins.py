"""Media that were there before, in any shard of a folder: the same bytes, or the same look."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from pathlib import PurePath
from typing import NamedTuple

from timeviper.datamodules.checks.perceptual import Lookalikes, Signature
from timeviper.datamodules.checks.sample import Examined, Sample
from timeviper.datamodules.frames.part import Part


class Twins:
    """Remembers every medium it is shown, and says which one it has seen before."""

    def __init__(self) -> None:
        self._seen: dict[bytes, list[_Use]] = {}
        self._lookalikes: Lookalikes[Sample] = Lookalikes()

    def of(self, sample: Sample, examined: Examined) -> Iterator[tuple[str, str]]:
        """Findings (kind, detail) on the media of a sample; those of one sample may be alike."""
        for member, digest in examined.digests.items():
            use = _Use(sample, sample.members[member].offset, examined.parts.get(member, (0.0, None)), examined.said)
            seen = self._seen.setdefault(digest, [])
            others = [other for other in seen if other.sample is not sample]
            seen.append(use)
            if same := next((other for other in others if use.repeats(other)), None):
                yield "duplicate", f"{member} has the same bytes as a file of {_named(same.sample, sample)}"
            elif others and all(other.at != use.at for other in others):
                detail = f"{member} has the same bytes as a file of {_named(others[0].sample, sample)}, for other texts"
                yield "stored-again", detail
            elif not others and member in examined.seen:
                yield from self._alike(sample, member, examined.seen[member])

    def _alike(self, sample: Sample, member: str, seen: Signature) -> Iterator[tuple[str, str]]:
        if alike := self._lookalikes.find(sample, seen):
            first, rms = alike
            if first is not sample:
                detail = f"{member} looks like a file of {_named(first, sample)} (they differ by {rms:.1f} of 255)"
                yield "near-duplicate", detail


class _Use(NamedTuple):
    """Of a file, by a sample."""

    sample: Sample
    offset: int
    part: Part
    said: bytes

    @property
    def at(self) -> tuple[str, int]:
        return self.sample.shard, self.offset

    def repeats(self, other: _Use) -> bool:
        """The same said of the same part; or, in another folder, where held-out data may lie, anything of it."""
        if PurePath(self.sample.shard).parent == PurePath(other.sample.shard).parent:
            return (self.part, self.said) == (other.part, other.said)
        (start, end), (first, last) = self.part, other.part
        return start < (inf if last is None else last) and first < (inf if end is None else end)


def _named(first: Sample, sample: Sample) -> str:
    apart = PurePath(first.shard).parent != PurePath(sample.shard).parent
    leak = ", in another folder: held-out data must not be training data" if apart else ""
    return f"{first.key!r} in {first.shard}{leak}"

"""Media that were there before, in any shard of a folder: the same bytes, or the same look."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from timeviper.datamodules.checks.perceptual import Lookalikes
from timeviper.datamodules.checks.sample import Examined, Sample


class Twins:
    """Remembers every medium it is shown, and says which one it has seen before."""

    def __init__(self) -> None:
        self._first: dict[bytes, Sample] = {}
        self._lookalikes: Lookalikes[Sample] = Lookalikes()

    def of(self, sample: Sample, examined: Examined) -> Iterator[tuple[str, str]]:
        """Findings (kind, detail) on the media of a sample; those of one sample may be alike."""
        for member, digest in examined.digests.items():
            first = self._first.setdefault(digest, sample)
            if first is not sample:
                advice = "; one sample may have several conversations" if sample.shard == first.shard else ""
                yield "duplicate", f"{member} has the same bytes as a file of {_where(first, sample)}{advice}"
            elif member in examined.seen and (alike := self._lookalikes.find(sample, examined.seen[member])):
                first, rms = alike
                if first is not sample:
                    detail = f"{member} looks like a file of {_where(first, sample)} (they differ by {rms:.1f} of 255)"
                    yield "near-duplicate", detail


def _where(first: Sample, sample: Sample) -> str:
    apart = PurePath(first.shard).parent != PurePath(sample.shard).parent
    leak = ", in another folder: held-out data must not be training data" if apart else ""
    return f"{first.key!r} in {first.shard}{leak}"

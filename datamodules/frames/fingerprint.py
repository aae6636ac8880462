"""What stored features depend on, so that training never takes those of another tower or of other frames.

Free of torch, because the index of a shard is written and read without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import IO, Any

from timeviper.config import FramesConfig
from timeviper.datamodules.frames.share import Length, shared
from timeviper.datamodules.frames.video import frame_count

# Raised with every change of decoding, resizing, encoding or merging that makes other features of the same file.
VERSION = 2
METADATA = "timeviper"  # the one key of a file's metadata: with several, their order would change from run to run
MAX_HEADER = 1 << 20  # bytes; a header has about 1,000


@dataclass(frozen=True)
class Fingerprint:
    """All that decides what the features of a video are."""

    towers: dict[str, dict[str, Any]]
    """By name: the settings of `TowerConfig` that matter, and `sha256` of the weights in float32."""
    image_size: int
    """Pixels square that frames are decoded to."""
    frames: FramesConfig
    """Which frames are taken."""
    dtype: str
    """What the towers compute in, and so the dtype of the features."""
    version: int = VERSION

    @property
    def digest(self) -> str:
        """32 hexadecimal digits; what the index of a shard notes of each sample."""
        return sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:32]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fingerprint:
        """ValueError if it is not what `as_dict` gives."""
        try:
            return cls(**{**data, "frames": FramesConfig(**data["frames"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"the fingerprint of the features cannot be read: {error}") from error


def same_frames(media: Sequence[Length], frames: FramesConfig, other: FramesConfig) -> bool:
    """Whether both take the same frames of each medium of a sample: those of n equal bins, with the same n."""

    def counts(wanted: FramesConfig) -> list[int]:
        return [frame_count(m.duration, each) for m, each in zip(media, shared(media, wanted)) if m.duration]

    return frames == other or counts(frames) == counts(other)


def read_metadata(file: IO[bytes]) -> dict[str, Any]:
    """What stands in the header of a file of features (see `stored.py`). ValueError if it is none."""
    size = int.from_bytes(_read(file, 8), "little")
    if not 2 <= size <= MAX_HEADER:
        raise ValueError(f"is no safetensors file, or a damaged one: its header would have {size:,} bytes")
    try:
        found = json.loads(json.loads(_read(file, size))["__metadata__"][METADATA])
        Fingerprint.from_dict(found["fingerprint"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"is no file of features: its header lacks what `shards features` writes ({error!r})"
        ) from error
    return found


def _read(file: IO[bytes], size: int) -> bytes:
    """So many bytes, or all that there are; a file of blocks gives one at a time."""
    found = b""
    while len(found) < size and (more := file.read(size - len(found))):
        found += more
    return found

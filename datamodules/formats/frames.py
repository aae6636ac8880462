"""Frames of a video that lie as pictures in a folder, or that an entry lists: joined into a video when it is written.

Nothing is decoded: the pictures (all JPEG, or all PNG) become the packets of a QuickTime file, so every byte of theirs
stays, each is a keyframe, and the file is as large as they are. Their rate is what nobody can see in them: `fps` of the
entry, or `--frame-rate`. Where the names in a folder are numbers these count: what is missing keeps its time.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av

from timeviper.datamodules.formats.fields import plain
from timeviper.datamodules.frames.container import named
from timeviper.datamodules.shards.schema import SchemaError, media_type
from timeviper.datamodules.shards.writer import Made

RATES = ("fps", "framerate", "framespersecond", "samplefps", "rawfps")
CODECS = {"jpg": "mjpeg", "jpeg": "mjpeg", "png": "png"}
NUMBER = re.compile(r"(\d+)(?=\D*$)")
MAX_RATE = 1000.0


@dataclass(frozen=True)
class JoinedFrames(Made):
    """A video of pictures: of all in `folder`, or of those in `names`, which are below it."""

    folder: Path
    names: tuple[str, ...]
    """Empty: all pictures in the folder."""
    count: int
    rate: float
    """Of numbers (or of pictures without) a second."""
    ending: str = "mov"

    def __str__(self) -> str:
        return f"{self.folder} ({self.count} pictures at {self.rate:g} a second)"

    def read(self) -> bytes:
        """The whole file. ValueError if pictures are gone, damaged, or of several sizes or sorts."""
        paths = self.pictures()
        if len(paths) != self.count:
            raise SchemaError(f"{self.folder} has {len(paths)} pictures, and had {self.count}", "media")
        out, first = io.BytesIO(), None
        with av.open(out, "w", format="mov", options={"fflags": "+bitexact"}) as video:
            stream = None
            base = 1 / Fraction(self.rate).limit_denominator(100_000)
            shown = range(len(paths)) if self.names else times(paths)  # a list says which follow each other
            for path, at in zip(paths, shown):
                raw = path.read_bytes()
                with named(str(path)), av.open(io.BytesIO(raw)) as picture:
                    source = picture.streams.video[0]
                    size = (source.codec_context.name, source.width, source.height)
                    if stream is None:
                        stream, first = video.add_stream_from_template(source), size
                        stream.time_base = base
                if size != first:
                    raise SchemaError(f"{path} is {_shown(size)}, but {paths[0].name} is {_shown(first)}", "media")
                packet = av.Packet(raw)
                packet.stream, packet.pts, packet.dts, packet.duration = stream, at, at, 1
                packet.time_base, packet.is_keyframe = base, True
                video.mux(packet)
        return out.getvalue()

    def pictures(self) -> list[Path]:
        """In their order."""
        if self.names:
            return [self.folder / name for name in self.names]
        return sorted(pictures_in(self.folder), key=_natural)


def joined(folder: Path, names: Sequence[str], rate: float | None) -> JoinedFrames:
    """A folder of pictures, or a list of them, as a video. SchemaError if it cannot become one."""
    paths = [folder / name for name in names] if names else pictures_in(folder)
    if not paths:
        raise SchemaError(f"{folder} is a folder without pictures")
    if gone := next((path for path in paths if not path.is_file()), None):
        raise SchemaError(f"there is no file {gone}")
    sorts = {CODECS.get(path.suffix[1:].lower(), path.suffix) for path in paths}
    if len(sorts) > 1 or not sorts <= set(CODECS.values()):
        raise SchemaError(
            f"{folder} has pictures of {', '.join(sorted(sorts))}; joined are those of all JPEG or all PNG"
        )
    if rate is None:
        raise SchemaError(
            f"{folder} has {len(paths)} frames, but nothing says at which rate the video was taken: give fps in its "
            "entry, or --frame-rate for all"
        )
    return JoinedFrames(folder, tuple(names), len(paths), rate)


def pictures_in(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if media_type(p.name) == "image" and not p.name.startswith(".")]


def take_rate(fields: dict[str, Any], default: float | None) -> float | None:
    """The rate that an entry states, taken out of it; else the default."""
    name = next((name for name in fields if plain(name) in RATES), None)
    if name is None:
        return default
    try:
        rate = float(fields.pop(name))
    except (TypeError, ValueError) as error:
        raise SchemaError(f"{name} must be frames a second, got {error}") from error
    if not 0 < rate <= MAX_RATE:
        raise SchemaError(f"{name} is {rate:g}; it must be frames a second, above 0 and at most {MAX_RATE:g}")
    return rate


def times(paths: Sequence[Path]) -> list[int]:
    """When each is shown, in frames from the first: by the numbers in their names, if all have rising ones."""
    found = [NUMBER.search(path.stem) for path in paths]
    numbers = [int(match[1]) for match in found if match]
    if len(numbers) < len(paths) or any(b <= a for a, b in pairwise(numbers)):
        return list(range(len(paths)))
    step = math.gcd(*(b - a for a, b in pairwise(numbers))) or 1
    return [(number - numbers[0]) // step for number in numbers]


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _shown(size: tuple[str, int, int] | None) -> str:
    return "nothing" if size is None else f"{size[0]} of {size[1]}x{size[2]}"

"""How the files of the zoo are made (`media_zoo.py` lists them), and what is true of one.

Frames carry their numbers (`video_helpers.picture`), so truth does not depend on any time stamp. Everything is made
by PyAV: by its encoders, by copying packets with other stamps, and by joining and cutting bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.packet import Packet
from video_helpers import write_clip

COUNT = 24  # frames of most
TENTHS = [n / 10 for n in range(COUNT)]
VARYING = [0, 1, 2, 10, 11, 30, 31, 32, 33, 60, 61]  # tenths of a second
GOP: dict[str, object] = {"g": "8"}
B_FRAMES: dict[str, object] = GOP | {"bf": "2", "sc_threshold": "0"}
STATIC: dict[str, object] = {"sc_threshold": "0", "bf": "0"}


@dataclass(frozen=True)
class Animal:
    """One file, and the truth about it."""

    path: Path
    numbers: list[int]
    """Of the frames, in the order in which they are shown."""
    times: list[float]
    """Seconds from which each is shown."""
    duration: float
    notes: frozenset[str] = frozenset()
    """Kinds that a check may note of it, and does."""
    honest: bool = True
    """The time stamps of the file are those of a player; else they jump, or there are none."""

    def shown_at(self, seconds: Iterable[float]) -> list[int]:
        """The numbers that a player shows then."""
        at = np.searchsorted(np.array(self.times), np.array(list(seconds)) + 1e-6, side="right") - 1
        return [self.numbers[max(i, 0)] for i in at]


Maker = Callable[[Path], Animal]


def regular(
    codec: str, fps: int | Fraction = 10, notes: str = "", read_as: float = 0, honest: bool = True, **options: Any
) -> Maker:
    """Frames in even steps. read_as: frames a second that FFmpeg gives a stream without time stamps."""

    def make(path: Path) -> Animal:
        write_clip(path, COUNT, codec, fps, **options)
        rate = read_as or float(fps)
        times = [n / rate for n in range(COUNT)]
        numbers = [int(f"{n:08b}"[::-1], 2) if options.get("turned") else n for n in range(COUNT)]
        return Animal(path, numbers, times, COUNT / rate, frozenset(notes.split()), honest and not read_as)

    return make


def varying(codec: str = "libx264", last: float = 0.1, notes: str = "variable", **options: Any) -> Maker:
    def make(path: Path) -> Animal:
        write_clip(path, VARYING, codec, **options)
        times = [stamp / 10 for stamp in VARYING]
        return Animal(path, [*range(len(times))], times, times[-1] + last, frozenset(notes.split()))

    return make


def copied(
    change: Callable[[int, Packet], Packet | None],
    times: list[float],
    duration: float,
    *,
    numbers: Iterable[int] = range(COUNT),
    notes: str = "",
    container: dict[str, str] | None = None,
    honest: bool = True,
    **source: Any,
) -> Maker:
    """A plain clip whose packets are written anew, changed or as others."""

    def make(path: Path) -> Animal:
        whole = write_clip(
            path.with_name(f"of-{path.stem}.mkv"), COUNT, **cast(Any, {"options": STATIC | GOP} | source)
        )
        copy(whole, path, change, container)
        return Animal(path, [*numbers], times, duration, frozenset(notes.split()), honest)

    return make


def copy(
    source: Path, target: Path, change: Callable[[int, Packet], Packet | None], container: dict[str, str] | None
) -> None:
    with av.open(str(source)) as file, av.open(str(target), "w", options=container or {}) as out:
        stream = out.add_stream_from_template(file.streams.video[0])
        for i, packet in enumerate(p for p in file.demux(video=0) if p.size):
            packet = change(i, packet) or packet
            packet.stream = stream
            out.mux(packet)


def plain(i: int, packet: Packet) -> None:
    """Changes nothing."""


def holding(i: int, packet: Packet) -> None:
    """The last frame stays for 5 seconds."""
    if i == COUNT - 1:
        packet.duration = round(5 / cast(Fraction, packet.time_base))


def restamped(tenths: list[int]) -> Callable[[int, Packet], None]:
    def change(i: int, packet: Packet) -> None:
        packet.pts = packet.dts = round(Fraction(tenths[i], 10) / cast(Fraction, packet.time_base))

    return change


def hidden(i: int, packet: Packet) -> None:
    """Of VP8: every fifth frame is decoded and never shown, as references to the future are."""
    if i % 5 == 4:
        data = bytes(packet)
        packet.update(bytes([data[0] & ~0x10]) + data[1:])


def not_coded(i: int, packet: Packet) -> Packet | None:
    """Of MPEG-4: every fifth frame is an empty one, as recorders write them for those that they dropped."""
    if i % 5 != 4:
        return None
    data = bytes(packet)
    data = data[data.index(b"\x00\x00\x01\xb6") :]
    bits = "".join(f"{byte:08b}" for byte in data[4:12])
    head = "01" + bits[2 : bits.index("0", 2) + 7]  # predicted; seconds, marker, tenths in four bits, marker
    head += "00"  # not coded; then stuffing
    head += "1" * (-len(head) % 8)
    empty = Packet(data[:4] + int(head, 2).to_bytes(len(head) // 8, "big"))
    empty.pts, empty.dts, empty.duration = packet.pts, packet.dts, packet.duration
    empty.time_base = packet.time_base
    return empty


def as_keyframe(i: int, packet: Packet) -> None:
    packet.is_keyframe = True

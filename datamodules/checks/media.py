"""One medium under examination: are the frames there that training wants, and is it what it says that it is?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import IO

import numpy as np
from av.error import FFmpegError

from timeviper.config import FramesConfig
from timeviper.datamodules.checks.blank import Shown
from timeviper.datamodules.checks.perceptual import FRAMES, SIZE, Signature, signature
from timeviper.datamodules.checks.reencode import KEY_SECONDS
from timeviper.datamodules.frames.container import Container, Source, Still, Strict, VideoError, named
from timeviper.datamodules.frames.decode import FrameReader
from timeviper.datamodules.frames.draw import is_turned
from timeviper.datamodules.frames.part import Part
from timeviper.datamodules.frames.timeline import Timeline, read_timeline
from timeviper.datamodules.frames.video import iter_video, lead_in, read_video, sample_times

Finding = tuple[str, str]  # kind, detail
Open = Callable[[], IO[bytes]]

KEY_COST = 2.0  # times the decoding that this takes; more is worth a note


@dataclass
class Medium:
    """What a file really holds. Lengths in seconds; a file that cannot be opened holds nothing."""

    findings: list[Finding] = field(default_factory=list)
    start: float = 0.0
    duration: float = 0.0
    count: int = 0
    """Frames in the whole file."""
    frames: int = 0
    """Frames that were wanted and decoded."""
    seconds: float = 0.0
    """CPU time that they took: opening, decoding, resizing."""
    seen: Signature | None = None

    @property
    def end(self) -> float:
        return self.start + self.duration


def examine_medium(open_file: Open, frames: FramesConfig, size: int, still: bool = False) -> Medium:
    """Decode what `frames` asks for, resized to `size` pixels square, and the last frame; look at all time stamps.

    still: of the file only the first picture is used.
    """
    medium = Medium()

    def source(file: IO[bytes]) -> Still | IO[bytes]:
        return Still(file) if still else file

    try:
        with named("video"):
            decode(medium, open_file, source, frames, size)
            with closing(open_file()) as file, Container(source(file)) as container:
                if not container.is_image:
                    medium.findings += _time_stamps(medium, container, frames)
                elif still and len(list(islice(container.packets(), 2))) > 1:
                    medium.findings.append(_moving(container.format))
            with closing(open_file()) as file:
                medium.seen = signature(read_video(source(file), SIZE, FRAMES).pixels)
    except VideoError as error:
        if not any(kind == "media" for kind, _ in medium.findings):
            medium.findings.append(("media", error.reason))
    return medium


def _moving(form: str) -> Finding:
    """An image of several pictures."""
    if form in ("gif", "apng"):
        return "animation", f"is an animation ({form}); as an image it is its first picture"
    return "media", f"the json calls it an image, but it is a video ({form.partition(',')[0]})"


def decode(
    medium: Medium,
    open_file: Open,
    source: Callable[[IO[bytes]], Still | IO[bytes]],
    frames: FramesConfig,
    size: int,
    part: Part | None = None,
) -> None:
    """Decode what is wanted of a file or a part of it, and note whether that is damaged, cannot be had or is nothing.

    VideoError if half of it cannot be decoded.
    """
    with closing(open_file()) as file:
        strict = Strict(source(file))
        try:
            shown, missing = _wanted(medium, strict, frames, size, part)
        except VideoError:
            if not strict.damaged:
                raise
    if strict.damaged:
        with closing(open_file()) as file:  # as training reads it
            shown, missing = _wanted(medium, source(file), frames, size, part)
        with closing(open_file()) as file:
            medium.findings += _damage(source(file))
    if missing:
        where = "its part" if part else "all over it"
        detail = f"{missing} of {missing + medium.frames} frames from {where} cannot be decoded"
        medium.findings.append(("media", detail))
    if medium.duration:
        medium.findings += shown.notes(medium.count)


def _wanted(medium: Medium, source: Source, frames: FramesConfig, size: int, part: Part | None) -> tuple[Shown, int]:
    """What the frames show, and how many are missing."""
    shown, missing, medium.frames, medium.seconds = Shown(), 0, 0, 0.0
    begun = time.process_time()
    for piece in iter_video(source, size, frames, None, 32, part):
        medium.seconds += time.process_time() - begun
        shown.add(piece.pixels)
        medium.frames += len(piece.times)
        medium.duration, medium.count, missing = piece.duration, piece.count, piece.missing
        begun = time.process_time()
    medium.seconds += time.process_time() - begun
    return shown, missing


def _damage(source: Still | IO[bytes]) -> Iterator[Finding]:
    """What decoding it from its start shows; before the first frame comes out, something may be missing before it."""
    with Container(Strict(source)) as container:
        bad, packets, begun = [], 0, container.is_image
        for packet in chain(container.packets(), [None]):
            packets += packet is not None
            try:
                begun |= bool(container.decode(packet))
            except FFmpegError:
                if begun and packet is not None:
                    bad.append(packet)
        if bad and container.is_image:
            yield "media", "is cut or damaged: a part of it would be made up"
        elif bad:
            at = "" if bad[0].pts is None else f", the first at {container.seconds(bad[0].pts):.2f} s of its clock"
            yield (
                "media",
                f"{len(bad)} of {packets} packets are damaged{at}: frames from there to the next keyframe would be "
                "made up",
            )


def _time_stamps(medium: Medium, container: Container, frames: FramesConfig) -> Iterator[Finding]:
    timeline, tick = read_timeline(container), container.tick
    medium.start = lead_in(container, timeline.start)
    if medium.start > 0.5 * timeline.step * tick:
        yield "start", f"its sound begins {medium.start:.3f} s before its first frame; times count from the sound"
    yield from _ending(container, timeline)
    if timeline.shown is not None:
        how = "every frame is decoded" if timeline.ranks is None else "the whole file is read"
        form = container.format.partition(",")[0]
        yield "stamps", f"its packets ({form}) do not tell rightly when frames are shown: {how}"
    stamps = timeline.shown or sorted(
        p.pts for p in container.packets() if p.pts is not None and p.pts >= timeline.start and container.shows(p)
    )  # in ticks
    yield from _steadiness(stamps, tick)
    if timeline.shown is None:
        yield from _keyframes(medium, stamps, timeline, tick, frames)
    with Container(container.source) as again:
        yield from _last_frame(again, read_timeline(again))


def _ending(container: Container, timeline: Timeline) -> Iterator[Finding]:
    """The stream's length as the container states it. A promise of more than is there shows as missing frames."""
    stream, tick = container.stream, container.tick
    lasts, longer = (timeline.picture_end - timeline.start) * tick, (timeline.end - timeline.picture_end) * tick
    if longer:
        yield "sound", f"its sound goes on for {longer:.2f} s after its pictures; the last one is held until then"
    claimed = container.seconds(stream.duration) if stream.duration else (container.file.duration or 0) / 1e6
    if stream.duration is None and len(container.file.streams) > 1:
        return  # of the whole file: sound may be longer
    if not claimed:
        yield "container", f"states no length; it lasts {lasts:.2f} s"
    elif abs(claimed - lasts) > max(0.02 * lasts, 1.5 * timeline.step * tick, 0.1):
        yield "container", f"states {claimed:.2f} s; it lasts {lasts:.2f} s"


def _steadiness(stamps: list[int], tick: float) -> Iterator[Finding]:
    shown = np.diff(np.array(stamps)) if len(stamps) > 2 else np.array([1])
    usual = float(np.median(shown))
    if np.abs(shown - usual).max() > 0.25 * usual + 2:  # clocks of whole milliseconds round 33, 33, 34
        yield (
            "variable",
            f"its frames are shown for {shown.min() * tick:.3f} to {shown.max() * tick:.3f} s, mostly "
            f"{usual * tick:.3f} s",
        )


def _keyframes(
    medium: Medium, stamps: list[int], timeline: Timeline, tick: float, frames: FramesConfig
) -> Iterator[Finding]:
    """How many frames are decoded for the wanted ones? With a keyframe in 2 s it is those of 1 s each, on average."""
    numbers = np.array(stamps)
    offsets = sample_times(medium.duration, frames, len(stamps)) / tick
    wanted = np.searchsorted(numbers, timeline.start + offsets, side="right") - 1
    keys = np.searchsorted(numbers, np.array(timeline.keys or stamps[:1]))
    needed = _decoded(wanted, keys)
    usual = KEY_SECONDS / 2 * len(stamps) / medium.duration
    would = np.minimum(np.diff(wanted, prepend=-1), usual + 1).sum()
    if needed > KEY_COST * would:
        yield (
            "keyframes",
            f"up to {timeline.key_gap * tick:.1f} s without a keyframe: {needed:,} frames are decoded for "
            f"{len(wanted)}, {needed / would:.0f} times as many as with one in {KEY_SECONDS:.0f} s; --fix re-encodes",
        )


def _decoded(wanted: np.ndarray, keys: np.ndarray) -> int:
    """Frames from each keyframe (by number) to the last wanted one that it serves."""
    groups = np.searchsorted(keys, wanted, side="right") - 1
    last = {int(group): int(number) for group, number in zip(groups, wanted)}
    return sum(number - int(keys[max(group, 0)]) + 1 for group, number in last.items())


def _last_frame(container: Container, timeline: Timeline) -> Iterator[Finding]:
    """Files are cut at their end: the frame that nothing comes after is decoded as well."""
    frame = next(FrameReader(container, timeline).read([timeline.last]), None)
    if frame is None:
        yield "media", f"the last frame, at {container.seconds(timeline.last):.2f} s, cannot be decoded: cut or damaged"
    elif is_turned(frame[0]):
        yield "rotation", f"is stored turned or mirrored (by {frame[0].rotation % 360} degrees)"
    if container.odd_matrix is not None:
        yield "colours", f"its colours have a matrix (H.273: {container.odd_matrix}) that is read as the nearest known"

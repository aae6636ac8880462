"""A video written anew so that sparse sampling is cheap: a keyframe at each sampled instant.

H.264, 4:2:0, 8 bits, without B-frames, upright, in sizes that are even, without sound. Every frame keeps its time
as `Frames.times` tells it, so a variable rate stays as it was; the file starts at 0.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import IO, cast

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from timeviper.config import FramesConfig
from timeviper.datamodules.frames.container import Container, Strict
from timeviper.datamodules.frames.decode import FrameReader
from timeviper.datamodules.frames.draw import is_turned, upright
from timeviper.datamodules.frames.timeline import read_timeline
from timeviper.datamodules.frames.video import lead_in, sample_times

KEY_SECONDS = 2.0  # a keyframe at least so often, for recipes that sample other instants
CRF = "20"  # of x264: hardly visible losses
PATIENCE = 16  # times the work that the loader may spend on one file: here every frame is decoded, once


def reencode(source: IO[bytes], target: Path, frames: FramesConfig) -> float:
    """Write `source` to `target` (mp4) for recipes that take `frames`.

    Returns the share of its frames that could not be decoded, or not without making something up; the one before each
    is shown for longer. Raises
    `VideoError` for what cannot be read at all.
    """
    with Container(Strict(source)) as video, av.open(str(target), "w", format="mp4") as out:
        video.packets_left, video.pixels_left = PATIENCE * video.packets_left, PATIENCE * video.pixels_left
        timeline = read_timeline(video)
        # Without the sound that begins before it, the first frame would move to 0: it is shown from there instead.
        lead = round(lead_in(video, timeline.start) / video.tick)
        lead = lead if lead > timeline.step // 2 else 0
        end = timeline.end - timeline.start + lead
        duration, count = end * video.tick, timeline.count + bool(lead)
        instants = [int(t / video.tick + 1e-6) for t in sample_times(duration, frames, count)]  # as `iter_video` does
        writer = _Writer(out, video, instants, end)
        lost = timeline.count
        for frame, stamp in FrameReader(video, timeline).every():
            if lead and stamp == timeline.start:
                writer.add(frame, 0)
            writer.add(frame, stamp - timeline.start + lead)
            lost -= 1
        writer.close()
    cut = (timeline.promised - timeline.end) / timeline.step  # frames that the container speaks of
    return max(lost + cut, 0) / (timeline.count + cut)


class _Writer:
    """Encodes frames one late: whether a frame is a keyframe depends on when the next one comes."""

    def __init__(self, out: OutputContainer, video: Container, instants: list[int], end: int) -> None:
        """`instants` and `end` in ticks of the source, from 0."""
        self.out, self.video, self.end = out, video, end
        self.instants = iter(instants)
        self.instant = next(self.instants, None)
        self.stream: VideoStream | None = None
        self.held: tuple[VideoFrame, int] | None = None
        self.key: int | None = None  # time stamp of the last keyframe
        self.lasting: dict[int, int] = {}  # time stamp -> for how long it is shown

    def add(self, frame: VideoFrame, stamp: int) -> None:
        if self.held is None or stamp > self.held[1]:  # else the one before is not seen
            self._encode(until=stamp)
        self.held = frame, stamp

    def close(self) -> None:
        if self.held:
            self._encode(until=max(self.end, self.held[1] + 1))
        if self.stream:
            self._mux(self.stream.encode(None))

    def _encode(self, until: int) -> None:
        if self.held is None:
            return
        frame, stamp = self.held
        picture = plain_picture(frame)
        if self.stream is None:
            self.stream = self._open(frame, picture)
        sampled = False
        while self.instant is not None and self.instant < until:
            sampled, self.instant = True, next(self.instants, None)
        stale = self.key is None or (until - self.key) * self.video.tick > KEY_SECONDS
        if sampled or stale:
            self.key = stamp
        picture.pts, picture.time_base = stamp, self.video.stream.time_base or Fraction(1)
        picture.pict_type = PictureType.I if sampled or stale else PictureType.NONE
        self.lasting[stamp] = until - stamp
        self._mux(self.stream.encode(picture))

    def _open(self, frame: VideoFrame, picture: VideoFrame) -> VideoStream:
        stream = cast(VideoStream, self.out.add_stream("libx264", rate=25))  # the rate counts for nothing, stamps do
        stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, picture.format.name
        stream.time_base = stream.codec_context.time_base = self.video.stream.time_base or Fraction(1)
        context = stream.codec_context
        context.colorspace, context.color_range = frame.colorspace, picture.color_range
        context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc
        stream.options = {
            **{"preset": "veryfast", "crf": CRF, "bf": "0", "g": "100000", "sc_threshold": "0", "forced-idr": "1"},
            "threads": "1",
        }
        return stream

    def _mux(self, packets: list[Packet]) -> None:
        for packet in packets:
            if packet.pts is not None:
                packet.duration = self.lasting.pop(packet.pts, 0)
            self.out.mux(packet)


def plain_picture(frame: VideoFrame) -> VideoFrame:
    """Upright, 4:2:0, even in width and height; colours as they are."""
    if is_turned(frame):
        planes = np.asarray(frame.reformat(format="yuv444p").to_ndarray(), np.uint8)
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(upright(planes, frame)), format="yuv444p")
    width, height = (max(side // 2 * 2, 2) for side in (frame.width, frame.height))
    return frame.reformat(width, height, "yuv420p")

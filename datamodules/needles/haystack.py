"""A long video out of pieces of clips, with pictures over it for some seconds, encoded frame by frame.

It has the size and the rate of its first clip; others are brought to these. H.264, with a keyframe wherever a model
that takes evenly spaced frames will look, so that reading it costs one frame of decoding for one that is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
from av.container import OutputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from timeviper.config import FramesConfig
from timeviper.datamodules.checks.reencode import PATIENCE, plain_picture
from timeviper.datamodules.frames.container import Container, VideoError
from timeviper.datamodules.frames.decode import FrameReader
from timeviper.datamodules.frames.timeline import read_timeline
from timeviper.datamodules.frames.video import sample_times
from timeviper.datamodules.needles.material import Clip
from timeviper.datamodules.needles.pictures import Layout, Overlay, Picture

CRF = "23"
FINEST = 4  # frames at least for one that the model is shown, whatever the clip has: where a needle begins is exact


@dataclass(frozen=True)
class Cut:
    """A piece of a clip, in seconds from its first frame."""

    clip: Clip
    start: float
    seconds: float


@dataclass(frozen=True)
class Shown:
    """A picture over the video."""

    picture: Picture
    start: float
    end: float
    at: tuple[float, float]
    """Where an inset lies, as shares of the room that it leaves, x and y."""


def write_haystack(
    target: Path, cuts: Sequence[Cut], shown: Sequence[Shown], seconds: float, fps: float, layout: Layout
) -> dict[str, Any]:
    """Write `target`, an mp4 of `seconds`; what a sample's json says of it. fps: frames a second of the model.

    No more than a few frames are in memory. VideoError for a clip or a picture that cannot be read.
    """
    rate = max(cuts[0].clip.rate, Fraction(FINEST * fps).limit_denominator(1001))
    count = round(seconds * rate)
    lasts = float(count / rate)
    wanted = FramesConfig(fps=fps, max_frames=round(seconds * fps))
    keys = {int(time * rate + 1e-6) for time in sample_times(lasts, wanted)}
    waiting, overlay, current = list(reversed(shown)), None, None
    with av.open(str(target), "w", format="mp4") as out:
        stream: VideoStream | None = None
        for number, frame in enumerate(_frames(cuts, rate, count)):
            if stream is None:
                stream = _stream(out, frame, rate)
            picture = frame.reformat(stream.width, stream.height, "yuv420p")
            time = float(number / rate) + 1e-6
            if current and time >= current.end:
                current = overlay = None
            if waiting and time >= waiting[-1].start:
                current = waiting.pop()
                overlay = Overlay(current.picture.file, stream.width, stream.height, layout, current.at)
            if overlay:
                picture = overlay.over(picture)
            picture.pts, picture.time_base = number, 1 / rate
            picture.pict_type = PictureType.I if number in keys or not number else PictureType.NONE
            out.mux(stream.encode(picture))
        if stream is None:
            raise VideoError(str(cuts[0].clip.file), "gives no frame")
        out.mux(stream.encode(None))
    return {"duration": lasts, "fps": float(rate), "frames": count, "keyframe_spacing": round(1 / fps, 3)}


def _stream(out: OutputContainer, frame: VideoFrame, rate: Fraction) -> VideoStream:
    stream = cast(VideoStream, out.add_stream("libx264", rate=rate))
    stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
    stream.codec_context.colorspace, stream.codec_context.color_range = frame.colorspace, frame.color_range
    stream.time_base = stream.codec_context.time_base = 1 / rate
    stream.options = {
        **{"preset": "veryfast", "crf": CRF, "bf": "0", "g": "100000", "sc_threshold": "0", "forced-idr": "1"},
        "threads": "1",
    }
    return stream


def _frames(cuts: Sequence[Cut], rate: Fraction, count: int) -> Iterator[VideoFrame]:
    """`count` frames at `rate`, upright and in 4:2:0: of each piece what a player shows at each time."""
    given, until = 0, 0.0
    for cut in cuts:
        until += cut.seconds
        last = count if cut is cuts[-1] else min(round(until * rate), count)
        for frame in _of_piece(cut, rate, last - given):
            yield frame
            given += 1


def _of_piece(cut: Cut, rate: Fraction, count: int) -> Iterator[VideoFrame]:
    """Where a clip is damaged, the frame before stays. VideoError where nothing of it can be decoded."""
    frame, given = None, 0
    with Container(cut.clip.file) as video:
        video.packets_left, video.pixels_left = PATIENCE * video.packets_left, PATIENCE * video.pixels_left
        timeline = read_timeline(video)
        targets = [timeline.start + int((cut.start + float(k / rate)) / video.tick + 1e-6) for k in range(count)]
        for decoded, _, serves in FrameReader(video, timeline).read(targets):
            frame = plain_picture(decoded)
            for _ in range(serves):
                yield frame
                given += 1
    if frame is None and count:
        raise VideoError(str(cut.clip.file), f"nothing of {cut.seconds:g} s from {cut.start:g} s on can be decoded")
    for _ in range(count - given):
        assert frame is not None
        yield frame

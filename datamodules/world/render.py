"""Pixels of a scene: objects with soft edges on a dark background that drifts, noise, and the encoder.

Frames are drawn in chunks, so an hour of video takes the memory of a minute. One scene gives one file, bit for
bit: all randomness comes from its seed, and x264 runs in one thread.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from typing import cast

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

from timeviper.datamodules.world.scene import COLOURS, SIZES, Event, Scene

CHUNK = 64  # frames drawn at once: 3 MB of float32 at 64 pixels
NOISE = 3.0  # standard deviation, of 255
GOP = 4  # frames from keyframe to keyframe: as many at most are decoded for one that is wanted


def draw(scene: Scene) -> Iterator[NDArray[np.uint8]]:
    """Frames `[n, H, W, 3]` of a scene, chunk by chunk; frame k shows the time `offset` + k / fps."""
    rng = np.random.default_rng(scene.seed)
    tint = rng.uniform(18, 52, 3).astype(np.float32)
    strength, angle, turn = rng.uniform(8, 18), rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3)
    axis = np.linspace(-1, 1, scene.pixels, dtype=np.float32)
    bank = _noise_bank(scene.pixels)
    for first in range(0, scene.frames, CHUNK):
        times = np.arange(first, min(first + CHUNK, scene.frames)) / scene.fps + scene.offset
        phase = (angle + turn * times).astype(np.float32)[:, None, None]
        # Light falls from a side that turns by at most 0.3 rad/s: slow beside any object.
        grey = np.float32(strength) * (np.cos(phase) * axis + np.sin(phase) * axis[:, None])
        grey += bank[rng.integers(len(bank), size=len(times))]
        frames = np.maximum(grey, -tint.min())[..., None] + tint  # from here on within 0..255
        for event in scene.events:
            shown = (times >= event.start) & (times < event.end)
            if shown.any():
                frames[shown] = _paint(frames[shown], event, times[shown])
        yield frames.astype(np.uint8)


@cache
def _noise_bank(pixels: int) -> NDArray[np.float32]:
    """Noise for 128 frames `[128, H, W]`, drawn once: the same for all scenes, in another order."""
    half = np.random.default_rng(0).normal(0, NOISE, (64, pixels, pixels)).astype(np.float32)
    return np.concatenate([half, -half])


def _paint(frames: NDArray[np.float32], event: Event, times: NDArray[np.float64]) -> NDArray[np.float32]:
    """Blend the object over `frames [n, H, W, 3]`, in place."""
    along = ((times - event.start) / (event.end - event.start))[:, None]
    centres = (1 - along) * np.array(event.begin) + along * np.array(event.finish)
    pixels = frames.shape[1]
    cover = coverage(event.shape, centres * pixels, SIZES[event.size] * pixels, pixels)[..., None]
    colour: NDArray[np.float32] = np.array(COLOURS[event.colour], np.float32)
    frames += cover * (colour - frames)
    return frames


def coverage(shape: str, centres: NDArray[np.float64], radius: float, pixels: int) -> NDArray[np.float32]:
    """How much of each pixel a shape covers, `[n, H, W]` in 0..1, from its signed distance in pixels."""
    at = np.arange(pixels, dtype=np.float32) + 0.5
    x = (at - centres[:, :1].astype(np.float32))[:, None, :]
    y = (at - centres[:, 1:].astype(np.float32))[:, :, None]
    match shape:
        case "circle":
            distance = np.hypot(x, y) - radius
        case "ring":
            distance = np.abs(np.hypot(x, y) - 0.76 * radius) - 0.24 * radius
        case "square":
            distance = np.maximum(np.abs(x), np.abs(y)) - 0.86 * radius
        case "cross":
            near, far = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
            distance = np.maximum(near - 0.3 * radius, far - radius)
        case "triangle":  # equilateral, tip up; moved down so that it fills the height
            tall, down = 1.15 * radius, y - 0.15 * radius
            distance = np.maximum(down - tall / 2, np.abs(x) * 0.866 - down / 2 - tall / 2)
        case _:
            raise ValueError(f"no such shape: {shape!r}")
    return np.clip(0.5 - distance, 0, 1).astype(np.float32)


def encode_video(scene: Scene) -> bytes:
    """H.264 in mp4, without B-frames: a frame's time is its place in the file."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        rate = Fraction(scene.fps).limit_denominator(1001)
        options = {"preset": "ultrafast", "crf": "32", "bf": "0", "g": str(GOP)}
        stream = container.add_stream("libx264", rate=rate, options={**options, "threads": "1"})
        stream.width = stream.height = scene.pixels
        stream.pix_fmt = "yuv420p"
        for chunk in draw(scene):
            for pixels in chunk:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def encode_image(pixels: NDArray[np.uint8], codec: str = "mjpeg") -> bytes:
    """A jpeg (or png) file of `[H, W, 3]` RGB."""
    context = cast(VideoCodecContext, av.CodecContext.create(codec, "w"))
    context.width, context.height = pixels.shape[1], pixels.shape[0]
    context.pix_fmt = "rgb24" if codec == "png" else "yuvj444p"
    context.time_base = Fraction(1)
    context.thread_count = 1  # starting more takes ten times as long as a picture of 64 pixels
    context.options = {} if codec == "png" else {"qmin": "2", "qmax": "3"}
    packets = context.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")) + context.encode(None)
    return b"".join(bytes(p) for p in packets)

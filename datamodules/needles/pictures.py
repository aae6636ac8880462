"""Captioned pictures: a table of them, their pixels with what is transparent, and laying one over a frame."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from timeviper.datamodules.checks.perceptual import SIZE, Signature, signature
from timeviper.datamodules.formats.names import alike, find
from timeviper.datamodules.formats.table import read_table
from timeviper.datamodules.frames.container import Container, Still, VideoError
from timeviper.datamodules.shards.schema import SchemaError

Layout = Literal["inset", "full"]
Layer = tuple[NDArray[Any], NDArray[Any]]
INSET = 0.5  # longest side of an inset picture, as a share of the frame's shorter side
UNSPECIFIED = 2  # a matrix of H.273
GREY = 128  # behind what is transparent, where nothing else is


@dataclass(frozen=True)
class Picture:
    """A file and what it shows, in words that can stand within a sentence."""

    file: Path
    caption: str


def read_captions(table: Path) -> list[Picture]:
    """The rows of a CSV or TSV with a column for the file (image, path) and one for the caption.

    ValueError that lists every row that cannot be used.
    """
    found, bad = [], []
    try:
        for entry in read_table(table):
            fields = entry.fields
            try:
                if isinstance(fields, SchemaError):
                    raise fields
                found.append(Picture(_file(table.parent, fields), in_a_sentence(fields["caption"])))
            except ValueError as error:
                bad.append(f"{entry.where}: {error}")
    except (SchemaError, UnicodeDecodeError) as error:
        raise ValueError(f"{table}: {error}") from error
    if bad or not found:
        raise ValueError(f"{table}: " + (_listed(bad) if bad else "has no rows below the names of its columns"))
    return found


def _file(folder: Path, fields: dict[str, Any]) -> Path:
    if "caption" not in fields:
        raise SchemaError("has no caption: needles are pictures with captions, not questions (a column `caption`)")
    if "image" not in fields:
        raise SchemaError(f"names no picture (it has {', '.join(fields)})")
    file = find(folder / fields["image"])
    if not file.is_file():
        near = alike(file)
        raise SchemaError(f"there is no file {file}" + (f"; did you mean {near}?" if near else ""))
    return file


def in_a_sentence(caption: str) -> str:
    """ "An onion." -> "an onion": without the full stop, and its article small."""
    text = " ".join(caption.split()).rstrip(" .")
    first, space, rest = text.partition(" ")
    return first.lower() + space + rest if first.lower() in ("a", "an", "the", "some") else text


def load(file: Path, width: int, height: int) -> NDArray[np.uint8]:
    """RGBA `[h, w, 4]` that fits into `width` x `height` pixels, as large as it goes there; sides are even.

    VideoError for what cannot be read.
    """
    with Container(Still(file)) as container:
        decoded = (f for packet in chain(container.packets(), [None]) for f in container.decode(packet))
        frame = next(decoded, None)
        if frame is None:
            raise VideoError(str(file), "holds no picture")
        scale = min(width / frame.width, height / frame.height)
        w, h = (max(round(scale * side / 2), 1) * 2 for side in (frame.width, frame.height))
        return np.asarray(frame.reformat(min(w, width), min(h, height), "rgba").to_ndarray(), np.uint8)


def seen(file: Path) -> Signature:
    """How a picture looks, on grey, to find it again."""
    rgba = load(file, SIZE, SIZE).astype(np.float32)
    alpha = rgba[..., 3:] / 255
    pixels = np.full((SIZE, SIZE, 3), GREY, np.float32)
    h, w = rgba.shape[:2]
    y, x = (SIZE - h) // 2, (SIZE - w) // 2
    pixels[y : y + h, x : x + w] = rgba[..., :3] * alpha + GREY * (1 - alpha)
    return signature(pixels.transpose(2, 0, 1)[None].round().astype(np.uint8))


class Overlay:
    """A picture in the planes of 4:2:0 frames of one size, ready to be laid over any number of them."""

    def __init__(self, file: Path, width: int, height: int, layout: Layout, at: tuple[float, float]) -> None:
        """width, height: of the frames, even. at: where an inset lies, as shares of the room that it leaves, x and y.

        VideoError for a picture that cannot be read.
        """
        side = width, height
        if layout == "inset":
            longest = max(round(INSET * min(side)) // 2 * 2, 2)
            side = longest, longest
        rgba = load(file, *side)
        if layout == "full":
            rgba = _on_grey(rgba, width, height)
        self.h, self.w = rgba.shape[:2]
        self.x, self.y = (int(share * room / 2) * 2 for share, room in zip(at, (width - self.w, height - self.h)))
        self.alpha = rgba[..., 3].astype(np.float32) / 255
        self.rgb = np.ascontiguousarray(rgba[..., :3])
        self._planes: dict[int, list[Layer]] = {}

    def over(self, frame: VideoFrame) -> VideoFrame:
        """A copy of a frame in yuv420p with the picture on it."""
        w, h, half_w, half_h = frame.width, frame.height, frame.width // 2, frame.height // 2
        whole = frame.to_ndarray()  # [h * 3 / 2, w]: Y, then U and V, one after the other
        planes = [whole[:h], *whole[h:].reshape(2, half_h, half_w)]
        for n, (plane, (colour, through)) in enumerate(zip(planes, self._in(frame))):
            x, y = (self.x, self.y) if n == 0 else (self.x // 2, self.y // 2)
            part = plane[y : y + colour.shape[0], x : x + colour.shape[1]]
            part[:] = np.rint(colour + through * part).astype(np.uint8)
        made = VideoFrame.from_ndarray(whole.reshape(h * 3 // 2, w), format="yuv420p")
        made.colorspace, made.color_range = frame.colorspace, frame.color_range
        return made

    def _in(self, frame: VideoFrame) -> list[Layer]:
        """Of each plane: what the picture adds, and the share of the frame that shines through. Its colours are made
        with the matrix of the frames, so that nothing but the picture differs."""
        matrix = int(frame.colorspace)
        if matrix not in self._planes:
            own = VideoFrame.from_ndarray(self.rgb, format="rgb24")
            known = None if matrix == UNSPECIFIED else matrix
            y, u, v = own.reformat(format="yuv444p", dst_colorspace=known).to_ndarray().astype(np.float32)
            quarter = 1 - _halved(self.alpha)
            chroma = [(_halved(self.alpha * plane), quarter) for plane in (u, v)]
            self._planes[matrix] = [(self.alpha * y, 1 - self.alpha), *chroma]
        return self._planes[matrix]


def _halved(plane: NDArray[Any]) -> NDArray[Any]:
    h, w = plane.shape
    return plane.reshape(h // 2, 2, w // 2, 2).mean(axis=(1, 3))


def _on_grey(rgba: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """In the middle of a grey frame, nothing transparent."""
    whole = np.full((height, width, 4), (GREY, GREY, GREY, 255), np.uint8)
    h, w = rgba.shape[:2]
    y, x = (height - h) // 2, (width - w) // 2
    alpha = rgba[..., 3:].astype(np.float32) / 255
    mixed = alpha * rgba[..., :3] + (1 - alpha) * GREY
    whole[y : y + h, x : x + w, :3] = np.rint(mixed).astype(np.uint8)
    return whole


def _listed(bad: list[str], most: int = 10) -> str:
    more = f"\n  ... and {len(bad) - most:,} more" if len(bad) > most else ""
    return f"{len(bad):,} rows cannot be used:\n  " + "\n  ".join(bad[:most]) + more

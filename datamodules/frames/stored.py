"""`<key>.features.safetensors`: what the frozen towers made of the media of one sample.

Tensors `features.<tower>` `[F, T, C]`, merged but not projected, in the dtype that the tower computes in, and `times`
`[F]` float64, over all media of the sample one after the other. The metadata hold the fingerprint and, for each
medium, its kind, number of frames, duration, fps and what was missing: all that `Frames` says, except pixels.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from timeviper.config import FramesConfig
from timeviper.datamodules.frames.fingerprint import METADATA, Fingerprint, read_metadata, same_frames
from timeviper.datamodules.frames.share import Length, added, frame_counts
from timeviper.datamodules.frames.video import Frames

FACTS = ("kind", "duration", "count", "fps", "missing")  # of `Frames`, in the metadata


@dataclass
class StoredFrames(Frames):
    """Frames without pixels, `[0, 3, S, S]`, but with what the towers made of them."""

    features: dict[str, Tensor] = field(default_factory=dict)
    """`[F, T, C]` by tower."""


def encode_features(media: Sequence[Frames], features: dict[str, Tensor], fingerprint: Fingerprint) -> bytes:
    """The file of a sample: its media as they were read, and `[F, T, C]` by tower for all their frames in order.

    The same input gives the same bytes.
    """
    tensors = {f"features.{tower}": f.cpu().contiguous() for tower, f in features.items()}
    tensors["times"] = torch.cat([torch.as_tensor(m.times) for m in media])
    facts = [{"frames": len(m.times)} | {name: getattr(m, name) for name in FACTS} for m in media]
    metadata = {"fingerprint": fingerprint.as_dict(), "media": facts}
    return save(tensors, {METADATA: json.dumps(metadata)})


def decode_features(raw: bytes, image_size: int, frames: FramesConfig | None = None) -> list[StoredFrames]:
    """The media of a sample, from its file. ValueError if the file is none, or does not hold what it says.

    `frames`: what is wanted of the videos; ValueError too where that is other frames than are stored.
    """
    metadata = read_metadata(io.BytesIO(raw))
    stored = Fingerprint.from_dict(metadata["fingerprint"])
    try:
        tensors = load(raw)
        times = tensors.pop("times").numpy()
        features = {name.removeprefix("features."): f for name, f in tensors.items()}
        media = [_medium(facts, image_size) for facts in metadata["media"]]
        counts = [int(facts["frames"]) for facts in metadata["media"]]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its features cannot be read: {error!r}") from error
    if wrong := _wrong(stored, features, times, sum(counts)):
        raise ValueError(f"its features are not what they should be: {wrong}")
    lengths = [Length(medium.duration, medium.count) for medium in media]
    if frames is not None and not same_frames(lengths, frames, stored.frames):
        there, here = (frame_counts(lengths, each) for each in (stored.frames, frames))
        what, seconds = "a video" if len(media) == 1 else "media", added([f"{m.duration:.1f}" for m in lengths])
        raise ValueError(
            f"its features are of {added(there)} frames of {what} of {seconds} s, but "
            f"{added(here)} are wanted (data.frames: fps {frames.fps:g}, at most {frames.max_frames})"
        )
    there, here = tuple(n + m.missing for n, m in zip(counts, media)), frame_counts(lengths, stored.frames)
    if len(media) > 1 and there != here:  # each of several media had as many as one alone, once
        raise ValueError(
            f"its features are of {added(there)} frames of {len(media)} media, but {added(here)} are read of them: "
            "write them anew (timeviper shards features)"
        )
    start = 0
    for medium, n in zip(media, counts):
        medium.times = times[start : start + n]
        medium.features = {tower: f[start : start + n] for tower, f in features.items()}
        start += n
    return media


def _medium(facts: dict[str, Any], image_size: int) -> StoredFrames:
    pixels = np.zeros((0, 3, image_size, image_size), np.uint8)
    return StoredFrames(pixels, np.zeros(0), **{name: facts[name] for name in FACTS})


def _wrong(stored: Fingerprint, features: dict[str, Tensor], times: np.ndarray, count: int) -> str:
    """What contradicts the fingerprint; "" if nothing."""
    if features.keys() != stored.towers.keys():
        return f"towers {', '.join(sorted(features))}, but the fingerprint names {', '.join(sorted(stored.towers))}"
    if times.shape != (count,) or times.dtype != np.float64:
        return f"times {times.dtype} {list(times.shape)} of {count} frames"
    if not np.isfinite(times).all():
        return f"times of {count} frames, {int((~np.isfinite(times)).sum())} of which are not finite"
    for name, f in features.items():
        tower = stored.towers[name]
        if tuple(f.shape) != (count, tower["tokens"], tower["width"]) or str(f.dtype) != f"torch.{stored.dtype}":
            return (
                f"tower {name} has {f.dtype} {list(f.shape)} for {count} frames of {tower['tokens']} tokens with "
                f"{tower['width']} channels in {stored.dtype}"
            )
    return ""

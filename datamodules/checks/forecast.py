"""How long the loader will be at it: CPU seconds of decoding, measured on the samples themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from timeviper.config import FramesConfig

SLOWEST = 10  # samples that are named


@dataclass
class Forecast:
    """Collects what was measured; `summary` is the forecast of a report."""

    names: list[tuple[str, str]] = field(default_factory=list)  # shard, key
    seconds: list[float] = field(default_factory=list)
    frames: int = 0
    epoch: float = 0.0
    """Seconds of an epoch: a sample's media are decoded once for each of its conversations."""

    def add(self, shard: str, key: str, seconds: float, frames: int, conversations: int) -> None:
        self.names.append((shard, key))
        self.seconds.append(seconds)
        self.frames += frames
        self.epoch += seconds * max(conversations, 1)

    def summary(self, frames: FramesConfig, image_size: int) -> dict[str, Any]:
        """Empty if nothing was decoded. Seconds are of one core."""
        if not self.seconds:
            return {}
        seconds = np.array(self.seconds)
        slowest = np.argsort(-seconds, kind="stable")[:SLOWEST]
        return {
            "mean_s": float(seconds.mean()),
            "p50_s": float(np.percentile(seconds, 50)),
            "p95_s": float(np.percentile(seconds, 95)),
            "max_s": float(seconds.max()),
            "total_hours": float(seconds.sum() / 3600),
            "epoch_hours": self.epoch / 3600,
            "frames": self.frames,
            "wanted": {"fps": frames.fps, "max_frames": frames.max_frames, "image_size": image_size},
            "slowest": [
                {"shard": self.names[i][0], "key": self.names[i][1], "seconds": float(seconds[i])} for i in slowest
            ],
        }


def sentence(forecast: dict[str, Any]) -> str:
    """A forecast in a line for people."""
    if not forecast:
        return "no sample could be decoded, so there is no forecast"
    total, wanted = forecast["epoch_hours"], forecast["wanted"]
    mean, median, most, worst = (f"{forecast[name] * 1e3:.1f}" for name in ("mean_s", "p50_s", "p95_s", "max_s"))
    return (
        f"decoding {wanted['fps']:g} frames/s, at most {wanted['max_frames']}: {mean} ms a sample (median {median}, "
        f"95 % below {most}, worst {worst}), {total:.2g} core hours an epoch; one loader process reads "
        f"{1 / max(forecast['mean_s'], 1e-9):.0f} samples/s"
    )

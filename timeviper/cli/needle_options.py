"""What a person may say of needles, and what holds where nothing is said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LENGTHS, DEPTHS, COUNT, TYPES = "128,512,2048,10240", 10, 10, "at,when"


@dataclass(frozen=True)
class NeedleOptions:
    """What a person may say of needles that are made."""

    lengths: str = LENGTHS
    depths: int = DEPTHS
    count: int = COUNT
    """Held-out videos of each length."""
    train: int = 0
    """Videos for training, of each length."""
    train_lengths: str | None = None
    fps: float = 1.0
    seed: int = 0
    workers: int = 0
    videos: Path | None = None
    images: Path | None = None
    held_out_videos: Path | None = None
    held_out_images: Path | None = None
    held_out: float = 0.25
    shown: str = "3,5"
    layout: str = "inset"

"""What the model was shown, and what TransV left of it: for the reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from timeviper.inference.prefill import Prefilled
from timeviper.pack import Kind
from timeviper.serving.media import OpenMedium


@dataclass
class Facts:
    """What the model was shown, for the reply."""

    media: Sequence[OpenMedium]
    kinds: torch.Tensor = field(repr=False)
    """`[L]` of the prompt."""
    video: str = ""
    """The id of the state that the prompt went by."""
    kept: dict[str, int] = field(default_factory=dict)
    """Vision tokens that are left after each TransV stage; known when the prompt has been read, as what follows."""
    cached_tokens: int = 0
    survived: list[float] | None = None
    """Share of each frame's tokens that went through the last block."""

    @property
    def prompt_tokens(self) -> int:
        return len(self.kinds)

    @property
    def vision_tokens(self) -> int:
        return int((self.kinds == Kind.VISION).sum())

    def note(self, start: Prefilled, tokens_per_frame: int) -> None:
        """What reading the prompt has told."""
        self.kept = {stage: counts[0] for stage, counts in start.kept.items()}
        if not self.vision_tokens:
            return
        last = [*start.survivors.values()][-1][0].cpu() if start.survivors else torch.arange(self.vision_tokens)
        frames = last // tokens_per_frame
        counts = torch.bincount(frames, minlength=self.vision_tokens // tokens_per_frame)
        self.survived = (counts / tokens_per_frame).tolist()

    def as_dict(self) -> dict[str, Any]:
        times = [float(t) for medium in self.media for t in medium.frames.times]
        return {
            "video": self.video or None,
            "frames": len(times),
            "first_seconds": round(times[0], 3) if times else None,
            "last_seconds": round(times[-1], 3) if times else None,
            "media": [
                {
                    "kind": medium.frames.kind,
                    "duration": round(medium.frames.duration, 3),
                    "frame_times": [round(float(t), 3) for t in medium.frames.times],
                }
                for medium in self.media
            ],
            "tokens": {"prompt": self.prompt_tokens, "vision": self.vision_tokens, "kept": self.kept},
            "survived": None if self.survived is None else [round(share, 3) for share in self.survived],
        }

"""Which frames of a video a model is shown, by a name that says all: `fps:1:256`, `first:1:256`, `uniform:64` ...

fps:F:N         F frames a second; where that is more than N, N over the whole video (as training takes them)
uniform:N       N over the whole video, at the centres of equal bins
first:F:N       F frames a second, of these the first N: the rest of the video is not seen (TimeViper's tests)
linspace:N      N indices from the first frame to the last (lmms-eval)
vlmeval:N, longvideobench:N, mvbench:N      the indices that these take (`frame_indices`)
run             what the run was trained with, as fps:F:N
"""

from __future__ import annotations

from dataclasses import dataclass

from timeviper.config import FramesConfig
from timeviper.datamodules.frames.rule import FIRST, INDEXED, FrameRule
from timeviper.datamodules.frames.video import frame_count
from timeviper.errors import ConfigError, Problem, did_you_mean

RUN = "run"
FORMS = ("fps:F:N", "uniform:N", "first:F:N", *(f"{name}:N" for name in INDEXED), RUN)
DENSE = 1e6  # frames a second that no video has: the count alone decides


@dataclass(frozen=True)
class Protocol:
    """A rule for frames, and its name with every number."""

    name: str
    frames: FramesConfig

    def expected(self, duration: float | None) -> int:
        """About how many frames of a video of so many seconds (None: not known, taken as long)."""
        if isinstance(self.frames, FrameRule) and self.frames.rule != FIRST:
            return self.frames.max_frames
        return frame_count(3600.0 if duration is None else duration, self.frames)

    def as_dict(self) -> dict[str, object]:
        """For a capsule's header."""
        rule = self.frames.rule if isinstance(self.frames, FrameRule) else "bins"
        own = {"fps": self.frames.fps, "min_frames": self.frames.min_frames, "max_frames": self.frames.max_frames}
        return {"protocol": self.name, "rule": rule, **own}


def protocol_of(name: str, trained: FramesConfig) -> Protocol:
    """The protocol of a name; trained: `data.frames` of the run. ConfigError for a name that is none."""
    kind, *numbers = name.strip().split(":")
    try:
        if kind == RUN and not numbers:
            return Protocol(f"fps:{trained.fps:g}:{trained.max_frames}", trained)
        if kind in ("fps", FIRST) and len(numbers) == 2:
            rate, most = float(numbers[0]), int(numbers[1])
            if rate > 0 and most > 0:
                made = FramesConfig(rate, 1, most) if kind == "fps" else FrameRule(rate, 1, most, rule=FIRST)
                return Protocol(f"{kind}:{rate:g}:{most}", made)
        if kind in ("uniform", *INDEXED) and len(numbers) == 1 and (most := int(numbers[0])) > 0:
            made = FramesConfig(DENSE, 1, most) if kind == "uniform" else FrameRule(1.0, 1, most, rule=kind)
            return Protocol(f"{kind}:{most}", made)
    except ValueError:
        pass
    near = did_you_mean(kind, [form.partition(":")[0] for form in FORMS])
    message = f"is none of {', '.join(FORMS)} (F frames a second, N frames at most).{near}"
    raise ConfigError("bench run", [Problem("--frames", name, message)])

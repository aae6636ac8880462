"""What a video's state depends on, field by field: no question is put to that of another video, model or prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import torch

from timeviper.config import FramesConfig, Recipe
from timeviper.datamodules.chat import Encoded
from timeviper.datamodules.frames.video import Frames
from timeviper.features.check import weights_digest
from timeviper.model.viper import TimeViper
from timeviper.pack import Kind

# Fields in the order in which they are compared, and what a difference means.
FIELDS = {
    "content": "it is of another video",
    "sampler": "other frames of the video were taken (data.frames)",
    "dtype": "it was computed in another dtype",
    "tower": "another vision tower encoded the frames",
    "decoder": "another decoder read it (model.decoder)",
    "weights": "other weights read it",
    "transv": "another schedule of TransV dropped its tokens (model.transv)",
    "time": "the prompt told the time otherwise (chat.time)",
    "prefix": "another text stood before the video",
    "salt": "it belongs to somebody else",
}
OF_FEATURES = ("content", "sampler", "tower", "dtype", "salt")  # what features alone depend on
LONG = 120  # characters of a value that an error shows


class StateError(ValueError):
    """A video's state that cannot be used: where it is, and why; `field` of its key, where that is the reason."""

    def __init__(self, where: str, reason: str, field: str = "") -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason, self.field = where, reason, field

    def __reduce__(self) -> tuple[type[StateError], tuple[str, str, str]]:
        return StateError, (self.where, self.reason, self.field)


@dataclass(frozen=True)
class StateKey:
    """Two states with the same key are the same, to the bit on the same device."""

    content: str
    """SHA-256 of the video file, or of frames and times in memory."""
    sampler: dict[str, Any]
    """`data.frames`; of frames in memory nothing."""
    tower: dict[str, Any]
    """Settings of each tower, and a digest of its weights."""
    decoder: dict[str, Any]
    weights: str
    """Digest of the export's weights."""
    transv: dict[str, Any]
    time: dict[str, Any]
    """`chat.time` and `chat.frames_per_time`."""
    prefix: str
    """SHA-256 of the tokens before the first vision token."""
    dtype: str
    salt: str = ""
    """Of whoever may share the state with nobody else."""

    @property
    def digest(self) -> str:
        """64 hexadecimal digits."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def with_(self, **changes: Any) -> StateKey:
        return replace(self, **changes)

    def check(self, other: StateKey, where: str, fields: tuple[str, ...] = tuple(FIELDS)) -> None:
        """StateError that names the first of the fields in which `other`, that of here and now, differs."""
        for name in FIELDS:
            there, here = getattr(self, name), getattr(other, name)
            if name in fields and there != here:
                place, there, here = _apart(name, there, here)
                reason = f"{FIELDS[name]}: its key has {place} = {_cut(there)}, but here it is {_cut(here)}"
                raise StateError(where, f"{reason}. Make it anew (timeviper prefill), or ask as it was made", name)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StateKey:
        """TypeError if it is not what `asdict` gives."""
        return cls(**data)


def _apart(place: str, there: object, here: object) -> tuple[str, object, object]:
    """Where two settings differ, as deep as it is one setting, and what they are there."""
    if not (isinstance(there, Mapping) and isinstance(here, Mapping)):
        return place, there, here
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if len(names) == 1:
        return _apart(f"{place}.{names[0]}", there.get(names[0]), here.get(names[0]))
    there, here = ({name: side.get(name) for name in names} for side in (there, here))
    return place, there, here


def _cut(value: object) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, default=str)
    return text if len(text) <= LONG else f"{text[: LONG - 3]}..."


def model_key(model: TimeViper, recipe: Recipe, weights: str | None) -> StateKey:
    """A key, as far as the model says it. weights: the digest of its export; None: of an export older than those."""
    dtype = model.decoder.embeddings.weight.dtype
    towers: dict[str, Any] = {}
    for name, tower in recipe.model.towers.items():
        settings = {k: v for k, v in asdict(tower).items() if k != "weights"}
        towers[name] = settings | {"sha256": weights_digest(model.towers[name].state_dict(), dtype)}
    decoder = asdict(recipe.model.decoder)
    if recipe.eval.quantise != "none":
        decoder["quantise"] = recipe.eval.quantise
    return StateKey(
        content="",
        sampler={},
        tower=towers,
        decoder={k: v for k, v in decoder.items() if k not in ("weights", "max_tokens")},
        weights=weights or weights_digest(model.state_dict(), dtype),
        transv=asdict(recipe.model.transv),
        time={"time": recipe.chat.time, "frames_per_time": recipe.chat.frames_per_time},
        prefix="",
        dtype=str(dtype).removeprefix("torch."),
    )


def content_of(video: object, frames: Frames | None) -> str:
    """SHA-256 of a file, or of frames in memory."""
    if isinstance(video, (str, Path)) and Path(video).is_file():
        with open(video, "rb") as file:
            return file_digest(file, "sha256").hexdigest()
    assert frames is not None
    digest = sha256(f"{list(frames.pixels.shape)} {frames.duration!r} {frames.kind}".encode())
    digest.update(frames.times.tobytes())
    for picture in frames.pixels:  # one at a time: they need not lie side by side
        digest.update(picture.tobytes())
    return digest.hexdigest()


def sampler_of(video: object, frames: FramesConfig) -> dict[str, Any]:
    return asdict(frames) if isinstance(video, (str, Path)) else {}


def head_of(encoded: Encoded) -> int:
    """How many of a prompt's tokens stand before and in the video: up to the last vision token."""
    places = torch.nonzero(encoded.kind == Kind.VISION)
    return int(places[-1]) + 1 if len(places) else 0


def digest_of(encoded: Encoded, tokens: int) -> str:
    """SHA-256 of the first tokens of a prompt and their kinds."""
    return sha256(encoded.ids[:tokens].numpy().tobytes() + encoded.kind[:tokens].numpy().tobytes()).hexdigest()


def prefix_of(encoded: Encoded) -> str:
    """SHA-256 of what stands before the first vision token."""
    places = torch.nonzero(encoded.kind == Kind.VISION)
    return digest_of(encoded, int(places[0]) if len(places) else len(encoded.ids))

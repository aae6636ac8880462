"""What the doctor of shards says: findings on samples, and the report of a whole folder.

A *problem* makes training skip a sample, read it wrongly or count it twice. A *note* is worth knowing and
harmless: the reader deals with it. What people accept (`--accept KIND`) becomes a note.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

PROBLEMS = {
    "tar": "the archive is cut, damaged, or has members that a shard may not have",
    "index": "the index is missing, of another shard, or tells a sample differently",
    "key": "the files of a sample do not follow each other, or two samples have one key",
    "incomplete": "files without a json",
    "json": "the json cannot be read, or lacks or contradicts something",
    "checksum": "bytes are not what they were when the index was written",
    "text": "no text, more than the bound, or half a character",
    "placeholders": "<video> and <image> marks do not match the media",
    "segments": "a time is not in order, or outside of the media",
    "media": "a file cannot be opened, or wanted frames of it not be decoded, or are damaged",
    "duration": "length or number of frames are not those of the json",
    "missing": "the index knows a sample that is not in the archive",
    "crash": "the decoder took its process down",
    "duplicate": "the bytes of an earlier medium, and the same is said of them; or of one in another folder",
    "near-duplicate": "looks like an earlier medium: re-encoded, resized, another container",
}
MENDED = ("tar", "index", "media", "duration")  # by `--fix`, as far as there is something to mend
NOTES = {
    "container": "the container's own length is wrong; the time stamps count",
    "variable": "frames are shown for different times; each is read with its own",
    "stamps": "packets do not tell their times rightly, as of joined recordings; the file is read from its start",
    "start": "sound begins before the first frame; times count from the sound",
    "sound": "sound goes on after the last frame, which is held until it ends",
    "animation": "several pictures where the json speaks of an image: the first is read",
    "black": "a video without any light",
    "frozen": "the same picture throughout",
    "one-frame": "a video of a single frame",
    "green": "the green that decoders show where data are missing, encoded as if it were a picture",
    "colours": "a colour matrix that is not converted: read as the nearest that is",
    "rotation": "is shown turned or mirrored; frames are read upright",
    "keyframes": "so far apart that sampled frames cost much more than they need to",
    "fps": "the json's frame rate is not the mean one",
    "characters": "text with replacement characters: it was decoded wrongly once",
    "unused": "a file in the sample that nothing reads",
    "stored-again": "the bytes of an earlier medium, of which other things are said: stored once more",
    "shards": "left over from a writer that was stopped, or a number missing in a row of shards",
}


@dataclass(frozen=True)
class Defect:
    """One finding: `kind` is a key of PROBLEMS or NOTES, `key` is empty where it is about a whole shard."""

    shard: str
    key: str
    kind: str
    detail: str


@dataclass
class Report:
    """What a check found, in the order of shards and samples whatever the number of workers."""

    shards: int = 0
    samples: int = 0
    problems: list[Defect] = field(default_factory=list)
    forecast: dict[str, Any] = field(default_factory=dict)
    """Measured seconds of decoding; see `forecast.py`."""
    notes: list[Defect] = field(default_factory=list)
    waiting: int = 0
    """Shards that other parts of the check are still to do; media are compared when none is."""

    def add(self, found: Defect, accept: Collection[str] = ()) -> None:
        (self.notes if found.kind in NOTES or found.kind in accept else self.problems).append(found)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

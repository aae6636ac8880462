"""One question of a test set, whatever the set: what its reader makes, and all that asking and scoring need of it.

An item is plain data: it travels to other processes, and `to_json` is a line of a capsule.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from timeviper.datamodules.frames.part import Part

Task = Literal["mcq", "open", "grounding", "caption", "dense", "group"]
"""What is written in answer: a letter; words; windows of time; a text about the video; sentences with windows; or a
letter that counts only with those of its group (`Item.group`, `Item.group_rule`)."""
TASKS: tuple[Task, ...] = get_args(Task)
CHOICES = ("mcq", "group")  # tasks that are answered by a letter
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Window = tuple[float, float]
"""[start, end] in seconds of what the item shows: 0 is where the file starts to play, or the start of its clip."""


@dataclass(frozen=True)
class VideoRef:
    """Where a video lies, and which part of it is meant. `media.open_video` opens any of these."""

    name: str
    """What the set calls the video: the unit of resampling and of overlap, the same for all its questions and clips."""
    path: str = ""
    """A file, an archive (.zip, .tar, .tar.gz, the first of .tar.part.aa ...) or a folder of frames; "": missing."""
    member: str = ""
    """Of an archive: the file in it, or a folder of frames ending in "/"."""
    start: float | None = None
    """Seconds of the file at which the clip begins; None: at its start."""
    end: float | None = None
    """Seconds of the file at which it ends; None: at its end."""
    fps: float | None = None
    """Of a folder of frames: pictures a second. None: it is a video."""

    @property
    def missing(self) -> bool:
        return not self.path

    @property
    def file(self) -> str:
        """What is opened, as a key: questions with the same one may share a prefill if their clips are equal, too."""
        return f"{self.path}:{self.member}" if self.member else self.path

    @property
    def part(self) -> Part:
        """As `read_video` takes it."""
        return Part(self.start or 0.0, self.end)


@dataclass(frozen=True)
class SubtitleRef:
    """Where the subtitles of a video lie, which are read only where a protocol wants them."""

    path: str
    member: str = ""
    offset: float = 0.0
    """Seconds that are taken from their times."""


@dataclass(frozen=True)
class Item:
    """A question, or whatever is asked about a video. Times in seconds."""

    key: str
    """Unique in its set: the set's own question id where it has one."""
    video: VideoRef
    task: Task
    question: str
    """Without options and without any instruction about the form of the answer, which are the prompt's."""
    options: tuple[str, ...] = ()
    """Texts without letters; the first is A."""
    right: int | None = None
    """The right one of `options`, from 0; None: it is hidden, or the set's answer is none of them."""
    answers: tuple[str, ...] = ()
    """As the set writes them: of a choice its answer (letter, number or text), else texts of which each is right; of
    dense captions one for each of `windows`."""
    windows: tuple[Window, ...] = ()
    """True windows of grounding (any of them counts) and of dense captions (all of them)."""
    group: str = ""
    """Items of one group count together; "": alone."""
    group_rule: str = ""
    """How: "relevance", "[1,2,3,4]", "[1,[2,3],4]", "[[1,2],3,4]" (Video-MME-v2), "all" (VNBench: all or none)."""
    place: int = 0
    """In its group, from 1; 0: in none."""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What averages go by, such as {"duration": ("short",)}; under several values of a label it counts in each."""
    duration: float | None = None
    """Of the whole video, as the set states it."""
    subtitles: SubtitleRef | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What one metric of this set alone needs, such as scoring points; plain JSON."""
    notes: tuple[str, ...] = ()
    """Known defects of this item, by the names in `sets`: it is asked and counted as it is."""

    @property
    def is_choice(self) -> bool:
        return self.task in CHOICES

    @property
    def letter(self) -> str:
        """The right letter; "": not known, or no option."""
        return "" if self.right is None else LETTERS[self.right]

    def label(self, name: str) -> tuple[str, ...]:
        """Values of a label, none if it has none."""
        return tuple(self.labels.get(name, ()))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, without what is empty; `from_json` reads it."""
        return {
            name: value for name, value in asdict(self).items() if value not in (None, "", (), {}, 0) or name in KEPT
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Item:
        """What `to_json` made, also after a way through JSON. KeyError or TypeError for anything else."""
        given = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        given["video"] = VideoRef(**given["video"])
        if given.get("subtitles"):
            given["subtitles"] = SubtitleRef(**given["subtitles"])
        for name in ("options", "answers", "notes"):
            given[name] = tuple(given.get(name, ()))
        given["windows"] = tuple((float(a), float(b)) for a, b in given.get("windows", ()))
        given["labels"] = {name: tuple(values) for name, values in given.get("labels", {}).items()}
        return cls(**given)


MARKED = re.compile(r"\(?([A-Za-z])[).:]\s*(.+)", re.DOTALL)
KEPT = ("key", "video", "task", "question", "right")  # of `to_json`: 0 is the first option


def right_option(answer: str | int, options: Sequence[str]) -> int | None:
    """Which option an answer means, from 0: a number counts, a letter or a marked text names, a text equals one.

    An exact text goes before a letter ("A" may be an option). None: it is none of them, or stands for several.
    """
    if isinstance(answer, int):
        return answer if 0 <= answer < len(options) else None
    told = answer.strip()
    same = [i for i, option in enumerate(options) if option.strip() == told]
    if same:
        return same[0]
    letter = told.strip("().: ").upper()
    if len(letter) == 1 and letter in LETTERS:
        place = LETTERS.index(letter)
        return place if place < len(options) else None
    alike = [i for i, option in enumerate(options) if plain(option) == plain(told)]
    if alike:
        return alike[0]
    marked = MARKED.fullmatch(told)
    place = LETTERS.index(marked[1].upper()) if marked else len(options)
    return place if marked and place < len(options) and plain(options[place]) == plain(marked[2]) else None


def plain(text: str) -> str:
    """A text without case, spaces at its ends and a final full stop: how options are compared."""
    return " ".join(text.lower().split()).rstrip(" .")

"""What a reader of a test set says of it: name, what it counts, prompts, how its own scorer counts, known defects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from timeviper.benchmarking.item import LETTERS, Item, Task

Unparsed = Literal["wrong", "dropped", "random", "right"]
Average = Literal["question", "macro", "label", "group", "video"]


@dataclass(frozen=True)
class Policy:
    """How somebody's scorer of the set counts: the rules in which evaluators differ."""

    unparsed: Unparsed = "wrong"
    """What an answer that cannot be read counts as."""
    average: Average = "question"
    """question: the mean of all; macro: the mean over values of `by` of their means; label: each question once for
    each of its values of `by`; group: the mean of the groups' scores; video: the mean over videos of their means."""
    by: str = ""
    """A label of the items, such as "task"; for macro and label."""
    strict: bool = False
    """Of windows: whether an IoU must be above a threshold (>), not just reach it (>=)."""


@dataclass(frozen=True)
class Form:
    """A prompt of the set: text around question and options, `str.format` fields in braces.

    Fields: `question`, `options` (lines, already lettered; "" without options), `subtitles` (the block, "" without),
    `duration` (seconds), `frames`; no others. Lines that become empty because a field is are left out.
    """

    text: str
    option: str = "{letter}. {text}"
    """A line for each option."""
    system: str = ""
    prefix: str = ""
    """What the answer is made to begin with; the first token follows it."""
    subtitles: str = "{cues}"
    """The block around the cues, where the protocol has any."""
    max_new_tokens: int = 16
    cue: str = ""
    """What the text ends with when the answer is to follow it, such as "The best answer is:" ("" if none)."""

    def lines(self, options: tuple[str, ...]) -> str:
        """The options as they are shown."""
        return "\n".join(self.option.format(letter=letter, text=text) for letter, text in zip(LETTERS, options))

    def render(self, item: Item, cues: str = "", duration: float = 0.0, frames: int = 0) -> str:
        """The user's text for an item, without media; `system` and `prefix` go into the chat as they are."""
        values = {
            "question": item.question,
            "options": self.lines(item.options),
            "subtitles": self.subtitles.format(cues=cues) if cues else "",
            "duration": f"{duration:.2f}".rstrip("0").rstrip("."),
            "frames": str(frames),
        }
        kept = [(line, line.format(**values)) for line in (*self.text.split("\n"), *([self.cue] if self.cue else []))]
        return "\n".join(made for line, made in kept if made.strip() or not line.strip())


@dataclass(frozen=True)
class Counts:
    """What was published, to be held against what is there. 0: not known."""

    videos: int = 0
    questions: int = 0
    groups: int = 0
    by: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Questions for each value of a label."""
    others: Mapping[str, int] = field(default_factory=dict)
    """Questions of other splits and versions, by what they are: who has that many has those."""


@dataclass(frozen=True)
class Unread:
    """An entry of an annotation file that could not be read: it is reported, not dropped in silence."""

    where: str
    reason: str


Read = Callable[[Sequence[Path]], Iterable[Item | Unread]]
"""Items of annotation files in their order, with videos (and subtitles) that are only named: `VideoRef.path` empty,
`SubtitleRef.path` as the set calls the file. ValueError for a file that cannot be read at all."""


@dataclass(frozen=True)
class TestSet:
    """A public test set."""

    __test__ = False  # of pytest

    name: str
    """As it is typed: videomme."""
    title: str
    """As it is printed: Video-MME."""
    task: Task
    """Of most items."""
    patterns: tuple[str, ...]
    """Names of annotation files, alternatives: of a folder all that match the first one that any matches."""
    read: Read
    download: str
    """What one downloads, for people: a sentence."""
    forms: Mapping[str, Form]
    """"official" first; "lmms" is that of lmms-eval."""
    policies: Mapping[str, Policy]
    """How the set's own scorer counts ("official", first), and others ("lmms", "vlmeval", "timeviper")."""
    beside: tuple[str, ...] = ()
    """Names of files that are read, too, if they lie beside the annotations."""
    counts: Counts = Counts()
    defects: Mapping[str, int] = field(default_factory=dict)
    """How many items have each known defect, by the names of `Item.notes`; 0: some, the number was not published."""
    remarks: tuple[str, ...] = ()
    """What else is known to go wrong, sentences."""
    licence: str = ""
    """Under what terms it is given, a sentence."""
    gated: bool = False
    """Whether these are accepted in an account before the download."""

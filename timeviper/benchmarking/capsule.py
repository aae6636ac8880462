"""A capsule: one folder that holds everything a number depends on, so that anyone gets the same number from it.

    capsule.json    what was asked of what: set, model, frames, subtitles, prompt, decoding; digests of the other files
    items.jsonl     every question as it was shown: options, truth as letter and as text, labels, video
    frames.jsonl    of every video that was opened, the times of the frames that the model was shown
    answers.jsonl   raw replies, appended as they come; a line that was changed later is noticed by its digest

`capsule_write` fills one, `rescore` needs nothing but one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from timeviper.benchmarking.item import Item, VideoRef

FORMAT, VERSION = "timeviper-capsule", 1
SCORER = 1
"""Of the rules in `extract`, `windows` and `scoring`: a capsule of another one is scored by the present rules."""
HEADER, ITEMS, FRAMES, ANSWERS, PARTS = "capsule.json", "items.jsonl", "frames.jsonl", "answers.jsonl", "parts"
BLIND = "blind"
"""The variant in which every frame is grey; "" is the model as it is."""


class CapsuleError(ValueError):
    """A folder that is no capsule, or not as it was written."""


@dataclass(frozen=True)
class Shown:
    """The frames of a video that a model was shown."""

    video: str
    """`watched_key` of it."""
    times: tuple[float, ...]
    """Seconds, to the millisecond."""
    duration: float
    fallback: str = ""
    """Why these are others than the protocol says: frames that could not be decoded."""


@dataclass(frozen=True)
class Reply:
    """What a model wrote to one question."""

    key: str
    variant: str
    prompt: str
    """sha256 of the prompt's text, with system message and forced beginning; "" where nothing was asked."""
    reply: str
    tokens: Mapping[str, int]
    """prompt, vision, written."""
    finish: str
    """stop, or length: cut at the longest answer; "" for an error."""
    seconds: float
    error: str = ""
    """Why there is no reply."""

    @property
    def place(self) -> tuple[str, str]:
        return self.variant, self.key

    def line(self, salt: str) -> str:
        """As it stands in `answers.jsonl`, with its digest."""
        row = asdict(self)
        return json.dumps(row | {"check": check_of(row, salt)}, ensure_ascii=False)


def check_of(row: Mapping[str, Any], salt: str) -> str:
    """16 hexadecimal digits of a row of one capsule."""
    told = {name: value for name, value in row.items() if name != "check"}
    return sha256(f"{salt}{json.dumps(told, sort_keys=True)}".encode()).hexdigest()[:16]


@dataclass
class Capsule:
    """What a folder holds."""

    folder: Path
    header: dict[str, Any]
    items: list[Item]
    frames: dict[str, Shown]
    replies: dict[tuple[str, str], Reply] = field(default_factory=dict)
    """By variant and key; of several of one question the last."""
    lines: int = 0
    """Of replies, those of errors that were asked again among them."""
    torn: int = 0
    """Lines that are cut off: their questions count as not asked."""
    edited: list[str] = field(default_factory=list)
    """What is not as it was written, a sentence each."""

    @property
    def finished(self) -> bool:
        return bool(self.header.get("finished"))

    @property
    def set_name(self) -> str:
        return str(self.header["set"]["name"])

    def of(self, variant: str) -> dict[str, Reply]:
        """Replies of a variant by key."""
        return {key: reply for (name, key), reply in self.replies.items() if name == variant}

    def missing(self) -> int:
        """Questions that were not asked yet, of every variant that was begun."""
        variants = {variant for variant, _ in self.replies} | {""}
        return sum((variant, item.key) not in self.replies for variant in variants for item in self.items)


def is_capsule(folder: str | Path) -> bool:
    return (Path(folder) / HEADER).is_file()


def read_capsule(folder: str | Path) -> Capsule:
    """A capsule, finished or on its way; the replies of ranks that were not joined yet among them.

    Raises CapsuleError for a folder that is none, is of a newer format, or whose items are others than it was made of.
    What is wrong with replies is in `torn` and `edited`.
    """
    folder = Path(folder)
    header = read_header(folder)
    raw = _read(folder / ITEMS)
    if sha256(raw).hexdigest() != header["items"]["sha256"]:
        raise CapsuleError(f"{folder / ITEMS} is not as it was written: take it from where the capsule comes from")
    items = [Item.from_json(json.loads(line)) for line in raw.decode().split("\n") if line]
    capsule = Capsule(folder, header, items, read_frames(folder))
    known = {item.key for item in items}
    for file in answer_files(folder):
        for number, row in rows_of(file):
            if row is None:
                capsule.torn += 1
                continue
            reply = _reply(row)
            if row.get("check") != check_of(row, header["id"]):
                capsule.edited.append(f"{file.name}, line {number} ({reply.key}): was changed after it was written")
            if reply.key in known:
                capsule.replies[reply.place] = reply
                capsule.lines += 1
    finished = header.get("finished")
    if (
        finished
        and sha256(_read(folder / ANSWERS)).hexdigest() != finished["answers"]
        and not (capsule.edited or capsule.torn)
    ):
        capsule.edited.append(f"{ANSWERS}: lines were removed, added or moved after the run had finished")
    return capsule


def read_header(folder: Path) -> dict[str, Any]:
    """Raises CapsuleError."""
    path = folder / HEADER
    if not path.is_file():
        raise CapsuleError(f"{folder} is no capsule: it has no {HEADER}. `timeviper bench run` writes capsules")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        told = header["format"], int(header["version"])
        _ = header["id"], header["set"]["name"], header["items"]["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CapsuleError(f"{path} cannot be read ({error!r}): copy the capsule again") from error
    if told[0] != FORMAT:
        raise CapsuleError(f"{path} says format {told[0]!r}, but a capsule's is {FORMAT!r}")
    if told[1] > VERSION:
        raise CapsuleError(f"{path} is of capsule version {told[1]}, this timeviper reads up to {VERSION}: update it")
    return header


def read_frames(folder: Path) -> dict[str, Shown]:
    found = {}
    for file in (folder / FRAMES, *sorted((folder / PARTS).glob(f"*/{FRAMES}"))):
        for _, row in rows_of(file) if file.is_file() else ():
            if row is not None:
                found[row["video"]] = Shown(row["video"], tuple(row["times"]), row["duration"], row.get("fallback", ""))
    return found


def answer_files(folder: Path) -> list[Path]:
    """Of the whole, then of ranks that were stopped."""
    files = [folder / ANSWERS, *sorted((folder / PARTS).glob(f"*/{ANSWERS}"))]
    return [file for file in files if file.is_file()]


def rows_of(file: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Line numbers and rows; None for one that is cut off."""
    for number, line in enumerate(file.read_bytes().decode(errors="replace").split("\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        yield number, row if isinstance(row, dict) else None


def _reply(row: Mapping[str, Any]) -> Reply:
    try:
        return Reply(**{name: row[name] for name in Reply.__dataclass_fields__})
    except KeyError as error:
        raise CapsuleError(f"a reply lacks {error}: {json.dumps(row)[:80]}") from error


def clip_key(ref: VideoRef) -> str:
    """A video, or a part of it, as `frames.jsonl` names it."""
    part = ref.part
    return f"{ref.name} [{part.start:g}, {'end' if part.end is None else f'{part.end:g}'}]" if part.cuts else ref.name


def watched_key(item: Item) -> str:
    """What is watched for an item: its clip, or a needle in it, which is another video."""
    return clip_key(item.video) + (f" with {item.key}" if "needle" in item.extra else "")


def item_line(item: Item, shown: str) -> str:
    """A line of `items.jsonl`; shown: the options as the prompt has them. Where the video lies is left out: that is
    the matter of a machine."""
    row = item.to_json()
    row["video"] = {name: v for name, v in row["video"].items() if name not in ("path", "member") and v is not None}
    if item.subtitles is not None:
        name = Path(item.subtitles.member or item.subtitles.path).name
        row["subtitles"] = {"path": name, "offset": item.subtitles.offset}
    text = item.options[item.right] if item.right is not None and item.right < len(item.options) else ""
    more = {"shown": shown, "letter": item.letter, "text": text, "cluster": item.video.name}
    return json.dumps(row | more, ensure_ascii=False)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CapsuleError(f"{path.parent} is no whole capsule: {path.name} is missing; copy it again") from None

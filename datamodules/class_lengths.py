"""Lengths that a Python class states for all of its samples in one call, and keeps from start to start.

    def lengths(self) -> Iterable[dict]: ...       # of each sample, in order:
        # {"media": [{"type": "video", "duration": 9.0, "fps": 2.0, "frames": 18}, {"type": "image"}],
        #  "texts": [{"type": "chat", "text": 120, "answer": 40}]}      bytes, one a conversation; of several turns
        #                                            also "turns": [[text, answer, media in the question], ...]
    version = "2026-05"                            # another one, and lengths are asked for anew

Without `lengths` every record is made at every start, and every video that states no length is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from timeviper.datamodules.shards.index_file import Conversation, SampleRecord, Turn
from timeviper.files import write_whole

CHECKED = 32  # samples whose records are compared with their lengths at the start
STATED = ("duration", "fps", "frames")


def kept_file(name: str, options: dict[str, Any], version: str, count: int) -> Path:
    """Where lengths of a class are kept: of this class, these options, version and number of samples alone."""
    said = json.dumps([name, options, version, count], sort_keys=True, default=str)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "timeviper" / "lengths" / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.jsonl"


def read_kept(path: Path, count: int) -> list[SampleRecord] | None:
    """What is kept there; None if it is not there, or not whole."""
    try:
        with path.open(encoding="utf-8") as file:
            found = [_record(i, json.loads(line)) for i, line in enumerate(file)]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if len(found) == count else None


def keep(path: Path, stated: list[Any]) -> None:
    """A line a sample, whole or not at all. What cannot be written is asked for again, which is slow but right."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(f"{json.dumps(one)}\n" for one in stated))
    except OSError:
        pass


def records(stated: Iterable[Any]) -> Iterator[tuple[Any, SampleRecord]]:
    """Each statement, and the sample as the plan knows it. ValueError that names the sample and what is wrong."""
    for i, one in enumerate(stated):
        try:
            yield one, _record(i, one)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"lengths: sample {i}: {error}") from error


def _record(i: int, one: Any) -> SampleRecord:
    if not isinstance(one, dict) or not isinstance(one.get("media"), list) or not one.get("texts"):
        raise ValueError(f'must be {{"media": [...], "texts": [...]}} with at least one text, got {str(one)[:80]}')
    for number, medium in enumerate(one["media"]):
        if medium.get("type") not in ("video", "image"):
            raise ValueError(f"media[{number}].type is {medium.get('type')!r}; allowed: video, image")
        for name in STATED if medium["type"] == "video" else ():
            _number(medium.get(name), f"media[{number}].{name}", above=0)
    talks = []
    for number, text in enumerate(one["texts"]):
        all_, answer = (int(_number(text.get(n), f"texts[{number}].{n}", above=0)) for n in ("text", "answer"))
        if answer >= all_:
            raise ValueError(f"texts[{number}].answer is {answer} bytes of {all_}; text counts the question, too")
        turns = [Turn(*(int(_number(n, f"texts[{number}].turns", above=-1)) for n in t)) for t in text.get("turns", ())]
        if turns and (sum(t.text_bytes for t in turns) > all_ or sum(t.answer_bytes for t in turns) != answer):
            raise ValueError(f"texts[{number}].turns are of other sizes than the text; they must sum up to it")
        talks.append(Conversation(str(text.get("type", "chat")), all_, answer, tuple(turns) if len(turns) > 1 else ()))
    return SampleRecord.of(str(i), {}, one["media"], tuple(talks))


def _number(value: Any, where: str, above: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < 1e15:
        raise ValueError(f"{where} is {value!r}; it must be a number above {above:g}")
    return value


def difference(planned: SampleRecord, made: SampleRecord, seconds: float = 0.5) -> str:
    """What a sample's record says other than its lengths did; "" if nothing does."""
    if len(planned.each) != len(made.each) or planned.media != made.media:
        return f"{len(made.each)} media ({made.media}), where lengths said {len(planned.each)} ({planned.media})"
    for number, (said, found) in enumerate(zip(planned.each, made.each)):
        if abs(said.duration - found.duration) > seconds:
            return f"media[{number}] of {found.duration:g} s, where lengths said {said.duration:g} s"
    if len(planned.conversations) != len(made.conversations):
        return f"{len(made.conversations)} conversations, where lengths said {len(planned.conversations)}"
    for number, (said, found) in enumerate(zip(planned.conversations, made.conversations)):
        if said.turns != found.turns:
            return (
                f"conversations[{number}] of {len(found.turns) or 1} turns, where lengths said {len(said.turns) or 1}"
            )
        if (said.type, said.text_bytes) != (found.type, found.text_bytes):
            return (
                f"conversations[{number}] of type {found.type} with {found.text_bytes} bytes of text, where lengths "
                f"said {said.type} with {said.text_bytes}"
            )
    return ""

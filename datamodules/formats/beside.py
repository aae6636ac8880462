"""What is said about a medium by the files beside it, in a folder or in a tar.

`json` has the fields of an entry, `txt` a caption, and `vtt`, `srt` or `ttml` timed captions, perhaps in several
languages (`en.vtt`). `info.json` is what download tools know of a video. Of files that say the same, one is taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from timeviper.datamodules.formats.text_files import decode_text, parse_object
from timeviper.datamodules.formats.timed_text import ENDINGS, parse_timed_text
from timeviper.datamodules.shards.schema import SchemaError

TIMED = tuple(ending[1:] for ending in ENDINGS)
INFO = "info.json"
NOT_READ = ("ass", "ssa", "json3", "srv1", "srv2", "srv3", "sbv", "lrc", "smi", "scc", "stl", "sub")
"""Captions in forms that are not read here."""
SAYS = ("messages", "conversations", "question", "caption", "segments")
KEPT = ("id", "title", "webpage_url", "language")  # of an info.json
TAG = re.compile(r"[a-z]{2,}(?:[-_][a-z0-9]+)*", re.IGNORECASE)  # en, pt-BR, zh_Hans, en-orig, forced
PARTIAL = ("forced", "signs", "songs", "commentary")
ENGLISH = ("en", "eng", "english")

SAME = "captions that stand beside the video in several forms and say the same, taken once"
OTHERS = "captions in several languages; taken is {}, left out: {} (to take another, leave no other there)"
TRANSCRIPT = "texts with the words of the timed captions, left out"
TEXT_UNUSED = "texts that are not used, because the json beside them speaks already"
INFO_USED = f"info.json: {', '.join(KEPT)} are kept, the rest (chapters, description, ...) is not used"
UNREAD = "captions in a form that is not read (convert them to .vtt or .srt): {}"


class Text(NamedTuple):
    """One of these files."""

    name: str
    """What a message calls it."""
    ending: str
    """What stands behind the name of the medium: `json`, `en.vtt`."""
    read: Callable[[], bytes]
    """SchemaError or OSError if it cannot be read."""

    @property
    def tags(self) -> list[str]:
        return self.ending.lower().split(".")[:-1]

    @property
    def form(self) -> str:
        return self.ending.lower().rpartition(".")[2]


def is_text(ending: str) -> bool:
    """Whether a file is read, or at least noted, that has this ending behind the name of a medium."""
    *tags, form = ending.lower().split(".")
    if form in (*TIMED, *NOT_READ):
        return all(TAG.fullmatch(tag) for tag in tags)
    return ending.lower() in ("json", "txt", INFO)


def says(texts: Sequence[Text]) -> bool:
    """Whether there is a file that can say something about the medium."""
    return any(text.ending.lower() in ("json", "txt") or text.form in TIMED for text in texts)


def fields_of(texts: Sequence[Text]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields of an entry, and what was done that a person may want to know. SchemaError if they contradict."""
    notes: list[str] = []
    plain = {text.ending.lower(): text for text in texts}
    fields = _object(plain["json"]) if "json" in plain else {}
    if fields.keys() >= {"segments", "text"} and not fields.keys() & set(SAYS[:4]):
        fields = _transcript(fields)
    info = _object(plain[INFO]) if INFO in plain else {}
    if info:
        notes.append(INFO_USED)
        fields |= {"info": {name: info[name] for name in KEPT if name in info}}
    if unread := sorted({f".{text.form}" for text in texts if text.form in NOT_READ}):
        notes.append(UNREAD.format(", ".join(unread)))
    if timed := [text for text in texts if text.form in TIMED]:
        if info.get("section_start"):
            raise SchemaError(
                f"its {INFO} says that it is a section, from {info['section_start']} s on, so timed captions may count "
                f"from another start; shift them to the section and delete section_start there"
            )
        found = _segments(timed, _language(timed, str(info.get("language") or "")), notes)
        if "segments" in fields and _words(fields["segments"]) != _words(found):
            raise SchemaError(f"has segments in its json and in {timed[0].name}; keep one of them")
        fields.setdefault("segments", found)
    if "txt" in plain:
        _add_caption(fields, decode_text(plain["txt"].read(), plain["txt"].name).strip(), notes)
    return fields, tuple(notes)


def _object(text: Text) -> dict[str, Any]:
    """Its fields that have a value."""
    raw = decode_text(text.read(), text.name)
    try:
        found = parse_object(raw)
    except SchemaError as error:
        raise SchemaError(f"{text.name}: {error}") from error
    return {name: value for name, value in found.items() if value is not None}


def _transcript(fields: dict[str, Any]) -> dict[str, Any]:
    """What Whisper writes: its segments without tokens and scores, and without those that last no time."""
    found = fields["segments"] if isinstance(fields["segments"], list) else []
    if not all(isinstance(s, dict) and isinstance(s.get("text"), str) and {"start", "end"} <= s.keys() for s in found):
        return fields
    segments = [{name: s[name] for name in ("start", "end", "text")} | {"text": s["text"].strip()} for s in found]
    rest = {name: value for name, value in fields.items() if name not in ("text", "segments")}
    return rest | {"segments": [s for s in segments if s["text"] and s["start"] != s["end"]]}


def _add_caption(fields: dict[str, Any], caption: str, notes: list[str]) -> None:
    """A text is a caption, unless its words are there already."""
    if not fields.keys() & set(SAYS) or fields.get("caption") == "":
        fields["caption"] = caption
    elif "segments" in fields and not fields.keys() & set(SAYS[:4]):
        if caption.split() == _words(fields["segments"]):
            notes.append(TRANSCRIPT)
        else:
            fields["caption"] = caption
    elif fields.get("caption") != caption:
        notes.append(TEXT_UNUSED)


def _segments(timed: list[Text], language: str, notes: list[str]) -> list[dict[str, Any]]:
    """Of the captions in one language; in several forms, if they say the same."""
    if len(timed) > 1:
        taken = [text for text in timed if _speaks(text, language)]
        if not taken:
            listed = ", ".join(text.name for text in timed)
            raise SchemaError(f"has {listed} beside it; keep one of them, or one without a language in its name")
        # Those of the video itself before automatic ones (en-orig), whole ones before parts (en.forced).
        taken.sort(key=lambda text: (any(p in text.tags for p in PARTIAL), len(".".join(text.tags))))
        if others := sorted({".".join(text.tags) or text.form for text in timed if text.tags != taken[0].tags}):
            notes.append(OTHERS.format(".".join(taken[0].tags) or "the one without a language", ", ".join(others)))
        timed = [text for text in taken if text.tags == taken[0].tags]
    timed.sort(key=lambda text: TIMED.index(text.form))
    found = [parse_timed_text(text.name, text.read()) for text in timed]
    if any(_words(other.segments) != _words(found[0].segments) for other in found[1:]):
        raise SchemaError(f"has {', '.join(t.name for t in timed)} beside it, which differ; keep one of them")
    notes += [SAME] * (len(found) > 1) + list(found[0].notes)
    return found[0].segments


def _language(timed: list[Text], stated: str) -> str:
    """Which to take: what is spoken, as far as the files tell; no language where one file has none; else English."""
    spoken = stated or next((tag.removesuffix("-orig") for t in timed for tag in t.tags if tag.endswith("-orig")), "")
    if spoken and any(_speaks(text, spoken) for text in timed):
        return spoken
    if any(not text.tags for text in timed):
        return ""
    languages = {re.split("[-_]", text.tags[0])[0] for text in timed}
    return languages.pop() if len(languages) == 1 else "en"


def _speaks(text: Text, language: str) -> bool:
    """Whether a file is in a language, whatever the country or script."""
    if not (text.tags and language):
        return not (text.tags or language)
    a, b = (re.split("[-_]", tag.lower())[0] for tag in (text.tags[0], language))
    return a == b or (a in ENGLISH and b in ENGLISH)


def _words(segments: Any) -> list[str]:
    """All of a list of segments."""
    found = segments if isinstance(segments, list) else []
    return [word for s in found if isinstance(s, dict) for word in str(s.get("text", "")).split()]

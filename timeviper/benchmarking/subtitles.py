"""Subtitles as a rule: which cues a prompt holds is part of a score's name.

none: none. shown: each cue that is on the screen at a sampled frame, once, in order. vlmeval: at each frame the first
cue strictly around it, repeats kept, as VLMEvalKit takes them. all: every cue.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from timeviper.benchmarking.item import SubtitleRef
from timeviper.benchmarking.media import read_subtitles

RULES = ("none", "shown", "vlmeval", "all")
SHORTEST = 1.0  # seconds: what is shorter is widened to it, as LongVideoBench does
GAP = 0.5  # seconds without a word that end a sentence of words with times
_TAG = re.compile(r"<[^>]*>|\{[^}]*\}")
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)")
_ARROW = re.compile(r"([\d:.,]+)\s*-->\s*([\d:.,]+)")


@dataclass(frozen=True)
class Cue:
    """What is said from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def cues_of(ref: SubtitleRef) -> list[Cue]:
    """The cues of a file, in order. ValueError for one that cannot be read; OSError."""
    content = read_subtitles(ref).decode("utf-8-sig", errors="replace")
    name = (ref.member or ref.path).lower()
    try:
        found = _json(content, name.endswith("l")) if name.endswith((".json", ".jsonl")) else _arrows(content)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{ref.member or ref.path} holds no subtitles ({error!r})") from error
    moved = [Cue(c.start - ref.offset, c.end - ref.offset, c.text) for c in found if c.text]
    return sorted(moved, key=lambda cue: cue.start)


def chosen(cues: Sequence[Cue], rule: str, times: Sequence[float]) -> list[str]:
    """Texts of the cues that a rule takes for frames at `times`."""
    if rule == "none":
        return []
    if rule == "all":
        return [cue.text for cue in cues]
    if rule == "vlmeval":
        first = (next((c.text for c in cues if c.start < t < c.end), None) for t in times)
        return [text for text in first if text is not None]
    return [cue.text for cue in cues if any(a <= t <= b for a, b in [_wide(cue)] for t in times)]


def _wide(cue: Cue) -> tuple[float, float]:
    short = max(SHORTEST - (cue.end - cue.start), 0.0) / 2
    return cue.start - short, cue.end + short


def seconds(text: str | float) -> float:
    """HH:MM:SS,mmm or a number."""
    if isinstance(text, int | float):
        return float(text)
    match = _CLOCK.fullmatch(text.strip())
    if match is None:
        return float(text)
    return int(match[1] or 0) * 3600 + int(match[2]) * 60 + float(match[3].replace(",", "."))


def _arrows(content: str) -> list[Cue]:
    """SRT and WebVTT."""
    cues = []
    for block in re.split(r"\n\s*\n", content.replace("\r", "")):
        lines = block.strip().split("\n")
        at = next((i for i, line in enumerate(lines) if _ARROW.search(line)), None)
        if at is not None and (times := _ARROW.search(lines[at])):
            cues.append(Cue(seconds(times[1]), seconds(times[2]), _clean(" ".join(lines[at + 1 :]))))
    return cues


def _json(content: str, lines: bool) -> list[Cue]:
    """Cues {timestamp: [s, e], text} or {start, end, line}; words {text, start_time, end_time} a line."""
    rows = [json.loads(line) for line in content.splitlines() if line.strip()] if lines else json.loads(content)
    if rows and "start_time" in rows[0]:
        return _sentences([Cue(float(r["start_time"]), float(r["end_time"]), str(r["text"])) for r in rows])
    cues = []
    for row in rows:
        start, end = row["timestamp"] if "timestamp" in row else (row["start"], row["end"])
        cues.append(
            Cue(
                seconds(start), seconds(end if end is not None else start), _clean(row.get("text", row.get("line", "")))
            )
        )
    return cues


def _sentences(words: Sequence[Cue]) -> list[Cue]:
    """Words joined up to a pause."""
    found: list[Cue] = []
    for word in words:
        if found and word.start - found[-1].end <= GAP:
            found[-1] = Cue(found[-1].start, word.end, f"{found[-1].text} {word.text.strip()}")
        else:
            found.append(Cue(word.start, word.end, word.text.strip()))
    return found


def _clean(text: str) -> str:
    return " ".join(_TAG.sub("", text).split())

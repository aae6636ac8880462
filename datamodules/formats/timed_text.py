"""Timed captions: WebVTT, SubRip (SRT) and TTML, as segments {start, end, text} in seconds.

Styling, positions and empty cues are left out; a WebVTT speaker stays as "Name: ". Text that stands in no cue is an
error, not a loss; lines that stay while captions roll up are said once. Sources: W3C WebVTT (2019), W3C TTML2 (2018);
SRT has no standard and is read as players do.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from timeviper.datamodules.formats.rollup import Cue, said_once
from timeviper.datamodules.formats.text_files import decode_text, read_bytes
from timeviper.datamodules.formats.ttml import clock, read_ttml
from timeviper.datamodules.shards.schema import SchemaError, check_segments

ENDINGS = (".vtt", ".srt", ".ttml", ".dfxp")

CLOCK = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,9}))?"
TIMES = re.compile(rf"\s*{CLOCK}\s*-->\s*{CLOCK}(?:\s.*)?")
SRT_HEAD = re.compile(r"\s*-?\d[^<>]*:[^<>]*-->")  # else it is text, such as "A --> B"
ALMOST = re.compile(r"\s*\d+:\d\d\S*\s*(?:[-=–—]+>|→)\s*\d+:\d\d.*")  # such as 00:01,000 -> 00:02,000
VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
WORD_TIME = re.compile(r"<[\d:.]+>")
VTT_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|\{\\[^{}]*\}")  # <i>, <c.loud>, {\an8}
SRT_TAG = re.compile(r"</?(?:b|i|u|s|c|em|strong|font|span)\b[^<>]*>|\{\\[^{}]*\}", re.IGNORECASE)
OTHER_BLOCK = re.compile(r"(?:WEBVTT|NOTE|STYLE|REGION)(?:[ \t\n]|$)")

ROLLED = "captions that roll up the screen; each line is taken once, where it first appears"
NO_LENGTH = "cues of no length, which no player shows, left out"
DOUBLED = "cues that are there twice, taken once"
JOINED = "captions with an empty line inside a cue, where some players cut it; taken whole"
STREAM_CLOCK = "captions with X-TIMESTAMP-MAP (the clock of a stream), which is not used; times are taken as written"


class TimedText(NamedTuple):
    """What a caption file says."""

    segments: list[dict[str, Any]]
    notes: tuple[str, ...]
    """What was done with it that a person may want to know."""


def read_timed_text(path: Path) -> TimedText:
    """The segments of a caption file, in its order. SchemaError names the file and the cue."""
    return parse_timed_text(path.name, read_bytes(path))


def parse_timed_text(name: str, raw: bytes) -> TimedText:
    """The segments of the bytes of a caption file; its form is that of the ending of `name`."""
    notes: dict[str, None] = {}  # each once, in order
    is_ttml = name.lower().endswith((".ttml", ".dfxp"))
    text = "" if is_ttml else decode_text(raw, name)
    try:
        found = list(read_ttml(raw) if is_ttml else _cues(text, name.lower().endswith(".vtt"), notes))
        cues, rolls = said_once(_shown(found, notes))
        segments = [{"start": cue.start, "end": cue.end, "text": " ".join(cue.lines)} for cue in cues]
        if not segments:
            raise SchemaError("has no cue with text")
        check_segments(segments)
    except SchemaError as error:
        raise SchemaError(f"{name}: {error}", error.kind) from error
    return TimedText(segments, (*notes, *([ROLLED] if rolls else [])))


def _shown(cues: list[Cue], notes: dict[str, None]) -> list[Cue]:
    """Those with text that a player shows, once each."""
    cues = [cue for cue in cues if cue.lines]
    lasting = [cue for cue in cues if cue.start != cue.end]
    once = list(dict.fromkeys(lasting))
    notes |= dict.fromkeys([NO_LENGTH] * (len(lasting) < len(cues)) + [DOUBLED] * (len(once) < len(lasting)))
    return once


def _cues(text: str, is_vtt: bool, notes: dict[str, None]) -> Iterator[Cue]:
    """WebVTT and SRT: a line of times, and what stands below it until the next one."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
    is_vtt = is_vtt or text.startswith("WEBVTT")  # some tools write it under the other name
    if is_vtt and not re.match(r"WEBVTT(?:[ \t\n]|$)", text):
        raise SchemaError("does not begin with WEBVTT")
    if is_vtt and "\nX-TIMESTAMP-MAP" in text:
        notes[STREAM_CLOCK] = None
    lines = text.split("\n")
    heads = [i for i, line in enumerate(lines) if "-->" in line and (is_vtt or SRT_HEAD.match(line))]
    tops = [_top(lines, head, is_vtt) for head in heads] + [len(lines)]
    header = lines.index("") if is_vtt and "" in lines[: tops[0]] else tops[0] if is_vtt else 0
    for at, part in _paragraphs(lines, header, tops[0]):
        if not (is_vtt and OTHER_BLOCK.match(part)):
            raise _no_times(at, part)
    for number, (head, end) in enumerate(zip(heads, tops[1:]), 1):
        found = TIMES.fullmatch(lines[head])
        if not found:
            raise SchemaError(f"the times of line {head + 1} cannot be read: {lines[head]!r}")
        parts = list(_parts(lines, head + 1, end, is_vtt, str(number + 1)))
        if len(parts) > 1:
            notes[JOINED] = None
        yield Cue(clock(*found.groups()[:4]), clock(*found.groups()[4:]), *_plain("\n".join(parts), is_vtt))


def _top(lines: list[str], head: int, is_vtt: bool) -> int:
    """Where a cue begins: at its line of times, or at its name in the line above."""
    name = lines[head - 1].strip() if head > is_vtt else ""
    return head - bool(name.isdigit() or (name and is_vtt and lines[head - 2] == ""))


def _parts(lines: list[str], at: int, end: int, is_vtt: bool, following: str) -> Iterator[str]:
    """The texts of a cue, between empty lines, without what belongs to no cue.

    Only an empty line ends a cue, and not one that holds a space; but where editors strip that space, or a cue was
    written with an empty line inside, what follows can only belong to this cue. `following` is the next one's number.
    """
    for line, part in _paragraphs(lines, at, end):
        if any(ALMOST.fullmatch(row) for row in part.split("\n")):
            raise _no_times(line, part)
        if is_vtt and line > at and OTHER_BLOCK.match(part):
            continue
        if not is_vtt and line > at and part.split("\n")[0].strip() == following:
            if part.strip() == following:  # of a cue of nothing
                continue
            raise _no_times(line, part)
        if part.strip():
            yield part


def _paragraphs(lines: list[str], at: int, end: int) -> Iterator[tuple[int, str]]:
    """Runs of lines that are not empty, with the place of the first."""
    while at < end:
        if not lines[at]:
            at += 1
            continue
        stop = next((i for i in range(at, end) if not lines[i]), end)
        yield at, "\n".join(lines[at:stop])
        at = stop


def _no_times(at: int, part: str) -> SchemaError:
    return SchemaError(f"line {at + 1} ({part[:40]!r}) is below no line of times such as 00:01.000 --> 00:04.000")


def _plain(text: str, is_vtt: bool) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """Lines as they are shown, and which have times of words. Tags that SRT does not know are text there."""
    text = VOICE.sub(lambda voice: f"{voice[1].strip()}: ", BREAK.sub("\n", text))
    text = html.unescape((VTT_TAG if is_vtt else SRT_TAG).sub("", WORD_TIME.sub("\0", text)))
    rows = [(" ".join(row.replace("\0", "").split()), "\0" in row) for row in text.split("\n")]
    return tuple(row for row, _ in rows if row), tuple(timed for row, timed in rows if row)

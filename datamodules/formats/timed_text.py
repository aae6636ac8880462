"""Timed captions: WebVTT, SubRip (SRT) and TTML, as segments {start, end, text} in seconds.

Styling, positions and empty cues are left out; a WebVTT speaker stays as "Name: ". Text that stands in no cue is an
error, not a loss. Sources: W3C WebVTT (2019), W3C TTML2 (2018); SRT has no standard and is read as players do.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from timeviper.datamodules.formats.text_files import read_text
from timeviper.datamodules.shards.schema import MAX_JSON, SchemaError, check_segments

ENDINGS = (".vtt", ".srt", ".ttml", ".dfxp")

CLOCK = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,9}))?"
TIMES = re.compile(rf"\s*{CLOCK}\s*-->\s*{CLOCK}(?:\s.*)?")
VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<[\d:.]+>|\{\\[^{}]*\}")  # <i>, <c.loud>, <00:01.000>, {\an8}
OTHER_BLOCKS = ("WEBVTT", "NOTE", "STYLE", "REGION")

OFFSET = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|f|t)")
CLOCK_TTML = re.compile(r"(\d{2,}):(\d\d):(\d\d)(?:\.(\d+)|:(\d{2,})(?:\.\d+)?)?")
SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def read_timed_text(path: Path) -> list[dict[str, Any]]:
    """The segments of a caption file, in its order. SchemaError names the file and the cue."""
    try:
        cues = _ttml(path) if path.suffix.lower() in (".ttml", ".dfxp") else _blocks(path)
        segments = [{"start": start, "end": end, "text": text} for start, end, text in cues if text]
        if not segments:
            raise SchemaError("has no cue with text")
        check_segments(segments)
    except SchemaError as error:
        raise SchemaError(f"{path.name}: {error}", error.kind) from error
    return segments


Cue = tuple[float, float, str]


def _blocks(path: Path) -> Iterator[Cue]:
    """WebVTT and SRT: blocks between blank lines, each with a line of times."""
    is_vtt = path.suffix.lower() == ".vtt"
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
    if is_vtt and not re.match(r"WEBVTT(?:[ \t\n]|$)", text):
        raise SchemaError("does not begin with WEBVTT")
    for number, block in enumerate(re.split(r"\n[ \t]*(?:\n[ \t]*)+", text.strip()), 1):
        lines = block.split("\n")
        at = next((i for i, line in enumerate(lines[:2]) if "-->" in line), None)
        if at is None:
            if not (is_vtt and block.startswith(OTHER_BLOCKS)):
                raise SchemaError(
                    f"block {number} ({block[:40]!r}) has no line of times such as 00:01.000 --> 00:04.000"
                )
            continue
        found = TIMES.fullmatch(lines[at])
        if not found:
            raise SchemaError(f"the times of block {number} cannot be read: {lines[at]!r}")
        yield _clock(*found.groups()[:4]), _clock(*found.groups()[4:]), _plain("\n".join(lines[at + 1 :]))


def _clock(hours: str | None, minutes: str, seconds: str, fraction: str | None) -> float:
    # Rounded, because the sum of parts is not the nearest number to what is written.
    return round(int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction or 0}"), 9)


def _plain(text: str) -> str:
    text = VOICE.sub(lambda voice: f"{voice[1].strip()}: ", text)
    return " ".join(html.unescape(TAG.sub("", text)).split())


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Entities are declared here, and a kilobyte of them can stand for gigabytes."""
        raise SchemaError("has a DOCTYPE, which is not allowed; delete it")


def _ttml(path: Path) -> Iterator[Cue]:
    if (size := path.stat().st_size) > MAX_JSON:
        raise SchemaError(f"has {size} bytes, more than {MAX_JSON}; split it")
    try:
        parser = ElementTree.XMLParser(target=_Builder())
        parser.feed(path.read_bytes())
        root: ElementTree.Element = parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        if isinstance(error, SchemaError):
            raise
        raise SchemaError(f"is not well-formed XML: {error}") from error
    if _name(root) != "tt":
        raise SchemaError(f"is not TTML: its root is {_name(root)!r}, not 'tt'")
    yield from _Timing(root).cues(root, 0.0, None)


def _name(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]


class _Timing:
    """Times of a TTML document; those of an element count from the begin of the one around it (TTML2, 12.3)."""

    def __init__(self, root: ElementTree.Element) -> None:
        stated = {str(name).rpartition("}")[2]: value for name, value in root.attrib.items()}
        try:
            above, below = (float(n) for n in stated.get("frameRateMultiplier", "1 1").replace(":", " ").split())
            self.frame_rate = float(stated.get("frameRate", 30)) * above / below
            self.tick_rate = float(stated.get("tickRate", self.frame_rate if "frameRate" in stated else 1))
            known = self.frame_rate > 0 and self.tick_rate > 0
        except (ValueError, ZeroDivisionError):
            known = False
        if not known or stated.get("timeBase", "media") != "media":
            raise SchemaError("its frameRate, frameRateMultiplier, tickRate or timeBase cannot be used")

    def cues(self, element: ElementTree.Element, start: float, end: float | None) -> Iterator[Cue]:
        """A cue a timed paragraph, or a timed part of one."""
        attributes = element.attrib
        if attributes.get("timeContainer", "par") != "par" and len(element):
            raise SchemaError(f"<{_name(element)}> has timeContainer {attributes['timeContainer']!r}; only par is read")
        begun = start + self.seconds(attributes.get("begin", "0s"))
        ends = [] if end is None else [end]
        if "end" in attributes:
            ends.append(start + self.seconds(attributes["end"]))
        if "dur" in attributes:
            ends.append(begun + self.seconds(attributes["dur"]))
        parts = [part for part in element.iter() if part is not element and _timed(part)]
        if parts or _name(element) not in ("p", "span"):
            if _name(element) in ("p", "span") and (loose := _text(element, timed=False)):
                raise SchemaError(f"{loose[:40]!r} stands between timed parts of a paragraph; give it times of its own")
            for child in element:
                if _name(child) not in ("head", "metadata"):
                    yield from self.cues(child, begun, min(ends, default=None))
        elif text := _text(element):
            if not ends:
                raise SchemaError(f"the paragraph {text[:40]!r} has no end")
            yield round(begun, 9), round(min(ends), 9), text

    def seconds(self, written: str) -> float:
        """A TTML time expression: 00:00:05.5, 00:00:05:12 (frames), 5s, 500ms, 132f, 9000t."""
        if found := CLOCK_TTML.fullmatch(written.strip()):
            hours, minutes, seconds, fraction, frames = found.groups()
            return _clock(hours, minutes, seconds, fraction) + int(frames or 0) / self.frame_rate
        if found := OFFSET.fullmatch(written.strip()):
            unit = {**SECONDS, "f": 1 / self.frame_rate, "t": 1 / self.tick_rate}[found[2]]
            return float(found[1]) * unit
        raise SchemaError(
            f"the time {written!r} cannot be read; known are 00:00:05.5, 00:00:05:12, 5s, 500ms, 132f, 9t"
        )


def _timed(element: ElementTree.Element) -> bool:
    return bool({"begin", "end", "dur"} & element.attrib.keys())


def _text(element: ElementTree.Element, timed: bool = True) -> str:
    """Text of an element on one line; without that of its timed parts if `timed` is False."""

    def pieces(of: ElementTree.Element) -> Iterator[str]:
        yield of.text or ""
        for child in of:
            if _name(child) == "br":
                yield " "
            elif _name(child) != "metadata" and (timed or not _timed(child)):
                yield from pieces(child)
            yield child.tail or ""

    return " ".join("".join(pieces(element)).split())

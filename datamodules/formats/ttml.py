"""Timed captions in TTML (W3C TTML2, 2018): the cues of a document, with the times of nested elements added up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from timeviper.datamodules.formats.rollup import Cue
from timeviper.datamodules.shards.schema import SchemaError

OFFSET = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|f|t)")
CLOCK = re.compile(r"(\d{2,}):(\d\d):(\d\d)(?:\.(\d+)|:(\d{2,})(?:\.\d+)?)?")
SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Entities are declared here, and a kilobyte of them can stand for gigabytes."""
        raise SchemaError("has a DOCTYPE, which is not allowed; delete it")


def read_ttml(raw: bytes) -> Iterator[Cue]:
    """A cue a timed paragraph, or a timed part of one that has no end itself. SchemaError for what cannot be read."""
    try:
        parser = ElementTree.XMLParser(target=_Builder())
        parser.feed(raw)
        root: ElementTree.Element = parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        if isinstance(error, SchemaError):
            raise
        raise SchemaError(f"is not well-formed XML: {error}") from error
    if _name(root) != "tt":
        raise SchemaError(f"is not TTML: its root is {_name(root)!r}, not 'tt'")
    yield from _Timing(root).cues(root, 0.0, None)


def clock(hours: str | None, minutes: str, seconds: str, fraction: str | None) -> float:
    """Seconds; rounded, because the sum of parts is not the nearest number to what is written."""
    return round(int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction or 0}"), 9)


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
        attributes = element.attrib
        if attributes.get("timeContainer", "par") != "par" and len(element):
            raise SchemaError(f"<{_name(element)}> has timeContainer {attributes['timeContainer']!r}; only par is read")
        begun = start + self.seconds(attributes.get("begin", "0s"))
        ends = [] if end is None else [end]
        if "end" in attributes:
            ends.append(start + self.seconds(attributes["end"]))
        if "dur" in attributes:
            ends.append(begun + self.seconds(attributes["dur"]))
        words = _name(element) in ("p", "span")
        # A paragraph that ends as a whole is one cue; times inside it say when its words light up.
        whole = words and bool({"end", "dur"} & attributes.keys())
        parts = any(_timed(part) for part in element.iter() if part is not element)
        if not words or (parts and not whole):
            if words and (loose := " ".join(_lines(element, timed=False))):
                raise SchemaError(f"{loose[:40]!r} stands between timed parts of a paragraph; give it times of its own")
            for child in element:
                if _name(child) not in ("head", "metadata"):
                    yield from self.cues(child, begun, min(ends, default=None))
        elif lines := _lines(element):
            if not ends:
                raise SchemaError(f"the paragraph {lines[0][:40]!r} has no end")
            yield Cue(round(begun, 9), round(min(ends), 9), lines)

    def seconds(self, written: str) -> float:
        """A TTML time expression: 00:00:05.5, 00:00:05:12 (frames), 5s, 500ms, 132f, 9000t."""
        if found := CLOCK.fullmatch(written.strip()):
            hours, minutes, seconds, fraction, frames = found.groups()
            return clock(hours, minutes, seconds, fraction) + int(frames or 0) / self.frame_rate
        if found := OFFSET.fullmatch(written.strip()):
            unit = {**SECONDS, "f": 1 / self.frame_rate, "t": 1 / self.tick_rate}[found[2]]
            return float(found[1]) * unit
        raise SchemaError(
            f"the time {written!r} cannot be read; known are 00:00:05.5, 00:00:05:12, 5s, 500ms, 132f, 9t"
        )


def _timed(element: ElementTree.Element) -> bool:
    return bool({"begin", "end", "dur"} & element.attrib.keys())


def _lines(element: ElementTree.Element, timed: bool = True) -> tuple[str, ...]:
    """The lines of an element; without those of its timed parts if `timed` is False."""

    def pieces(of: ElementTree.Element) -> Iterator[str]:
        yield re.sub(r"\s+", " ", of.text or "")  # a line break in the file is none on the screen
        for child in of:
            if _name(child) == "br":
                yield "\n"
            elif _name(child) != "metadata" and (timed or not _timed(child)):
                yield from pieces(child)
            yield re.sub(r"\s+", " ", child.tail or "")

    lines = (" ".join(line.split()) for line in "".join(pieces(element)).split("\n"))
    return tuple(line for line in lines if line)

"""Charades-STA: a line of text for each moment of a video.

AO8RW 0.0 6.9##a person is putting a book on a shelf.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timeviper.datamodules.formats.entry import Entry, Format
from timeviper.datamodules.formats.grounding import read_grounding
from timeviper.datamodules.formats.text_files import read_lines
from timeviper.datamodules.shards.schema import SchemaError

LINE = re.compile(r"(\S+)\s+([\d.]+)\s+([\d.]+)\s*##\s*(.+)")


def read_charades(path: Path) -> Iterator[Entry]:
    """A question of type `when` for each line."""
    for number, line in read_lines(path):
        yield Entry(f"line {number}", line if isinstance(line, SchemaError) else _moment(line), raw=line)


def _moment(line: str) -> dict[str, Any] | SchemaError:
    found = LINE.fullmatch(line)
    if not found:
        return SchemaError(f'must be "VIDEO START END##SENTENCE", got {line[:80]!r}')
    video, start, end, sentence = found.groups()
    try:
        return read_grounding({"video_id": video, "query": sentence, "start": start, "end": end})
    except SchemaError as error:
        return error


CHARADES = Format(
    "charades", "moments as lines of text", lambda source: source.suffix.lower() == ".txt", read_charades, (".txt",)
)

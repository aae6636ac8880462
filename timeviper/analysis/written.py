"""Where an analysis goes: numbers as JSON, one HTML page, and its pictures as SVG files beside it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from timeviper.analysis.page import Page, write_page
from timeviper.files import write_whole

SCHEMA = 1  # of the JSON files


def write(folder: Path, name: str, page: Page, numbers: Mapping[str, Any]) -> Path:
    """`name.html`, `name.json` and `name-<picture>.svg` in a folder; returns the page. Raises as `write_page` does."""
    written = write_page(folder / f"{name}.html", page)
    write_whole(folder / f"{name}.json", as_json({"schema": SCHEMA, **dict(page.facts), **numbers}) + "\n")
    for old in folder.glob(f"{name}-*.svg"):
        old.unlink()
    drawings = [figure.drawing for section in page.sections for figure in section.figures]
    for number, drawing in enumerate(drawings, 1):
        title = re.sub(r"[^a-z0-9]+", "-", drawing.title.lower()).strip("-")[:40]
        write_whole(folder / f"{name}-{number:02}-{title}.svg", drawing.file())
    return written


def as_json(value: Any) -> str:
    """Text that every reader takes: what is not finite is null."""
    return json.dumps(_plain(value), ensure_ascii=False, indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool)) or value is None else str(value)

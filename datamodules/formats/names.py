"""Names that look the same: a letter with an accent is one character (NFC) or two (NFD, as old Macs write files).

Lists are written on one machine and files copied from another, so a name is compared as it looks.
"""

from __future__ import annotations

import os
import unicodedata
from functools import lru_cache
from pathlib import Path

from timeviper.datamodules.shards.schema import SchemaError


def composed(name: str) -> str:
    """A name in the form in which those that look the same are the same (Unicode NFC)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def find(path: Path) -> Path:
    """The path, or the one that looks like it and is there; a list made on Windows may have `\\` for `/`.

    The path itself if there is none. SchemaError if several files look like it.
    """
    if os.path.lexists(path):
        return path
    text = str(path)
    if "\\" in text and os.path.lexists(slashed := text.replace("\\", "/")):
        return Path(slashed)
    found = Path(path.anchor)
    for part in Path(text.replace("\\", "/")).parts[bool(path.anchor) :]:
        if not os.path.lexists(step := found / part):
            alike = _listed(found, _changed(found)).get(composed(part), ())
            if len(alike) > 1:
                raise SchemaError(f"{part} could be any of {len(alike)} files of that look in {found}; rename them")
            if not alike:
                return path
            step = found / alike[0]
        found = step
    return found


def alike(path: Path) -> str:
    """What is there that differs from a missing file in capitals only; empty if nothing is."""
    return _folded(path.parent, _changed(path.parent)).get(composed(path.name).casefold(), "")


def _changed(folder: Path) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except (OSError, ValueError):
        return 0


@lru_cache(maxsize=8)
def _folded(folder: Path, changed: int) -> dict[str, str]:
    """One name in a folder for all that differ in capitals only."""
    return {look.casefold(): names[0] for look, names in _listed(folder, changed).items()}


@lru_cache(maxsize=8)
def _listed(folder: Path, changed: int) -> dict[str, tuple[str, ...]]:
    """The names in a folder by how they look; it is read again only when it has `changed`."""
    found: dict[str, tuple[str, ...]] = {}
    try:
        for name in sorted(os.listdir(folder)):
            found[composed(name)] = (*found.get(composed(name), ()), name)
    except (OSError, ValueError):
        pass
    return found

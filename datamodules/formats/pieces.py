"""Turns whose content is a list of pieces, as chat APIs have them: text, video and image in their order.

    {"role": "user", "content": [{"type": "video", "video": "a.mp4", "video_start": 2.0, "video_end": 5.0},
                                 {"type": "text", "text": "What happens?"}]}

They become a text with marks, and the files and bounds that they name become those of the entry.
"""

from __future__ import annotations

from typing import Any

from timeviper.datamodules.formats.clip import take_bounds
from timeviper.datamodules.shards.schema import PLACEHOLDERS, SchemaError


def without_pieces(fields: dict[str, Any]) -> dict[str, Any]:
    """The entry with texts in place of pieces; what else pieces say (fps) becomes a field of the entry."""
    talk = next((name for name in ("messages", "conversations") if name in fields), None)
    if talk is None or not isinstance(fields[talk], list):
        return fields
    found = _Found()
    turns = [found.turn(turn) for turn in fields[talk]]
    if not found.pieces:
        return fields
    return found.more | fields | {talk: turns} | found.media(fields)


class _Found:
    """What the pieces of an entry's turns name."""

    def __init__(self) -> None:
        self.pieces = False
        self.files: dict[str, list[str | tuple[str, ...]]] = {"video": [], "image": []}
        self.bounds: list[tuple[float, float | None]] = []
        self.more: dict[str, Any] = {}

    def turn(self, turn: Any) -> Any:
        name = next((n for n in ("content", "value") if isinstance(turn, dict) and isinstance(turn.get(n), list)), None)
        if name is None:
            return turn
        self.pieces = True
        return {**turn, name: "".join(self._text(piece, turn) for piece in turn[name]).removesuffix("\n")}

    def media(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Files and bounds as fields. SchemaError if the entry names others itself."""
        found: dict[str, Any] = {}
        for kind, files in self.files.items():
            if files and fields.get(kind, files) not in (files, files[0]):
                raise SchemaError(f"names its {kind} in its turns and beside them; keep one of them")
            found |= {kind: files} if files else {}
        if any(bounds != (0.0, None) for bounds in self.bounds):
            found |= {"start": [a for a, _ in self.bounds], "end": [b for _, b in self.bounds]}
        return found

    def _text(self, piece: Any, turn: dict[str, Any]) -> str:
        if isinstance(piece, str):
            return piece
        if not isinstance(piece, dict):
            raise SchemaError(f"a turn has the piece {piece!r}; known are text, video and image")
        piece = dict(piece)
        kind = str(piece.pop("type", next((k for k in ("text", *self.files) if k in piece), ""))).removesuffix("_url")
        if kind in ("text", "input_text", "output_text"):
            return str(piece.pop("text", ""))
        if kind not in self.files or turn.get("role", turn.get("from")) not in ("user", "human"):
            raise SchemaError(f"a turn has a piece of type {kind!r}; known are text, and of users video and image")
        name = next((n for n in (kind, f"{kind}_url", "path", "url") if n in piece), None)
        if name:
            file = piece.pop(name)
            if isinstance(file, dict):  # {"url": ..., "detail": ...}
                self.more |= {key: value for key, value in file.items() if key != "url"}
                file = file.get("url")
            if kind == "video" and isinstance(file, list) and file and all(isinstance(one, str) for one in file):
                file = tuple(one.removeprefix("file://") for one in file)  # its frames
            elif not isinstance(file, str):
                raise SchemaError(f"a {kind} in a turn must be the path of a file, got {file!r}")
            self.files[kind].append(file.removeprefix("file://") if isinstance(file, str) else file)
        if kind == "video":
            bounds, _ = take_bounds(piece)
            self.bounds += bounds or [(0.0, None)]
        self.more |= piece
        return f"{PLACEHOLDERS[kind]}\n"

"""Somebody's own data, as they have it, brought into the samples that `write_shards` takes.

Either a JSONL file, one sample a line, with paths relative to the file:

    {"video": "clips/a.mp4", "messages": [{"role": "user", "content": "What happens?"},
                                          {"role": "assistant", "content": "A dog runs."}]}
    {"image": "b.jpg", "caption": "A red ring."}
    {"video": "c.mp4", "conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}

or a folder of media in which each file has a `.json` (the same fields, without the path) or a `.txt` (its
caption) beside it. Everything else that `shard_schema.py` knows (segments, source, type) is passed on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from timeviper.datamodules.shard_schema import PLACEHOLDERS, SchemaError, media_type, parse_record

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
SHOWN = 10  # problems listed in a message


class ManifestError(ValueError):
    """Entries that cannot be used, each with its line or file."""

    def __init__(self, source: Path, problems: list[str]) -> None:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        super().__init__("\n  ".join([f"{source}: {len(problems)} unusable", *problems[:SHOWN], *more]))
        self.problems = problems


def read_manifest(source: str | Path) -> list[dict[str, Any]]:
    """The samples of a JSONL file or of a folder; media stay paths, so nothing large is read.

    Raises FileNotFoundError if there is no such place, ManifestError with every unusable entry.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"there is no {source}; give a .jsonl file or a folder of media")
    entries = _folder(source) if source.is_dir() else _lines(source)
    samples, problems, keys = [], [], set()
    for where, root, read in entries:
        try:
            sample = _sample(read(), root)
        except (ValueError, OSError) as error:
            problems.append(f"{where}: {error}")
            continue
        sample["__key__"] = _unique(sample["__key__"], keys)
        samples.append(sample)
    if problems:
        raise ManifestError(source, problems)
    if not samples:
        raise ManifestError(source, ["it holds no sample; see docs/your-data.md for the two forms"])
    return samples


Entry = tuple[str, Path, Callable[[], dict[str, Any]]]  # where it stands, root of its paths, how to read it


def _lines(source: Path) -> Iterator[Entry]:
    with source.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", source.parent, lambda line=line: _object(line)


def _folder(source: Path) -> Iterator[Entry]:
    for path in sorted(p for p in source.rglob("*") if media_type(p.name) and not p.name.startswith(".")):
        yield str(path.relative_to(source)), source, lambda path=path: _beside(path, source)


def _beside(path: Path, root: Path) -> dict[str, Any]:
    """The entry of a media file in a folder."""
    record, caption = path.with_suffix(".json"), path.with_suffix(".txt")
    if record.is_file():
        entry = _object(record.read_text(encoding="utf-8"))
    elif caption.is_file():
        entry = {"caption": caption.read_text(encoding="utf-8").strip()}
    else:
        raise SchemaError(f"has neither {record.name} (messages) nor {caption.name} (a caption) beside it")
    return {**entry, str(media_type(path.name)): str(path.relative_to(root))}


def _object(text: str) -> dict[str, Any]:
    try:
        entry = json.loads(text)
    except ValueError as error:
        raise SchemaError(f"not valid JSON: {error}") from error
    if not isinstance(entry, dict):
        raise SchemaError(f"must be an object, got {type(entry).__name__}")
    return entry


def _sample(entry: dict[str, Any], root: Path) -> dict[str, Any]:
    """One entry in the form of a shard, checked as the reader will check it."""
    entry = dict(entry)
    written = [(kind, str(name)) for kind in PLACEHOLDERS for name in _as_list(entry.pop(kind, []))]
    paths = [(kind, root / name) for kind, name in written]  # an absolute path stays as it is
    if not paths:
        raise SchemaError('has no media: write "video": "path" or "image": "path"')
    for kind, path in paths:
        if media_type(path.name) != kind:
            raise SchemaError(f"{path.name} has not the ending of a {kind}")
        if not path.is_file():
            raise SchemaError(f"there is no file {path}")
    as_written = str(Path(written[0][1]).with_suffix("")).lstrip("./")
    name = str(entry.pop("key", entry.pop("id", as_written)))
    fields = [
        path.suffix[1:].lower() if len(paths) == 1 else f"{i}{path.suffix.lower()}" for i, (_, path) in enumerate(paths)
    ]
    record = {
        **_conversation(entry, paths[0][0]),
        "media": [{"type": kind, "member": field} for (kind, _), field in zip(paths, fields)],
    }
    parse_record(json.dumps(record).encode(), fields)
    return {
        "__key__": re.sub(r"[^\w-]+", "_", name),
        "json": record,
        **{field: path for field, (_, path) in zip(fields, paths)},
    }


def _conversation(entry: dict[str, Any], kind: str) -> dict[str, Any]:
    """The entry with its talk as `messages`: a caption answers a request, from/value pairs are renamed."""
    talk = entry.get("conversations")
    if "caption" in entry:
        question = {"role": "user", "content": f"Describe the {kind}."}
        answer = {"role": "assistant", "content": entry.pop("caption")}
        return {**entry, "conversations": [{"type": "caption", "messages": [question, answer]}]}
    if isinstance(talk, list) and talk and all(isinstance(turn, dict) and "from" in turn for turn in talk):
        del entry["conversations"]
        return {**entry, "messages": [_turn(turn, kind) for turn in talk]}
    return entry


def _turn(turn: dict[str, Any], kind: str) -> dict[str, str]:
    """In this form `<image>` stands for a video as well."""
    role = SPEAKERS.get(str(turn["from"]))
    if role is None:
        raise SchemaError(f"a turn is from {turn['from']!r}; known: {', '.join(SPEAKERS)}")
    return {"role": role, "content": str(turn.get("value", "")).replace("<image>", PLACEHOLDERS[kind])}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _unique(key: str, keys: set[str]) -> str:
    """Two files of one name in two folders, or one file with several entries, get keys of their own."""
    number, unique = 2, key
    while unique in keys:
        number, unique = number + 1, f"{key}-{number}"
    keys.add(unique)
    return unique

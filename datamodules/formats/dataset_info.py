"""What LLaMA-Factory's dataset_info.json says about the files beside it: how columns, roles and turns are called there.

{"mine": {"file_name": "mine.json", "formatting": "sharegpt", "columns": {"messages": "talk", "videos": "clips"},
          "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}}}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timeviper.datamodules.formats.entry import Entry
from timeviper.datamodules.formats.text_files import parse_object, read_text
from timeviper.datamodules.shards.schema import SchemaError

NAME = "dataset_info.json"
COLUMNS = {  # what a column means there: its name here
    **{"prompt": "instruction", "query": "input", "response": "output", "history": "history"},
    **{"messages": "conversations", "system": "system", "tools": "tools", "images": "images", "videos": "videos"},
    **{"audios": "audios", "chosen": "chosen", "rejected": "rejected", "kto_tag": "kto_tag"},
}
ROLES = {
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
    "observation_tag": "observation",
    "function_tag": "function_call",
}
USED = f"its columns and turns are read as {NAME} beside it says"


def renamed(source: Path, entries: Iterator[Entry]) -> Iterator[Entry]:
    """The entries under their usual names, if a description beside the file gives them others."""
    described = _described(source)
    if not (columns := described.get("columns", {})) and not described.get("tags"):
        yield from entries
        return
    names = {theirs: COLUMNS[meaning] for meaning, theirs in columns.items() if meaning in COLUMNS and theirs}
    for entry in entries:
        if not isinstance(entry.fields, dict):
            yield entry
            continue
        fields = {names.get(name, name): value for name, value in entry.fields.items()}
        fields["conversations"] = _turns(fields.get("conversations"), described.get("tags") or {})
        if fields["conversations"] is None:
            del fields["conversations"]
        notes = (*entry.notes, USED) if fields.keys() != entry.fields.keys() else entry.notes
        yield entry._replace(fields=fields, notes=notes, raw=entry.raw or entry.fields)


def _turns(turns: Any, tags: dict[str, Any]) -> Any:
    if not isinstance(turns, list):
        return turns
    role, content = tags.get("role_tag", "from"), tags.get("content_tag", "value")
    roles = {tags.get(tag, usual): usual for tag, usual in ROLES.items()}
    found = []
    for turn in turns:
        if isinstance(turn, dict) and role in turn and content in turn:
            more = {name: value for name, value in turn.items() if name not in (role, content)}
            turn = {"from": roles.get(turn[role], turn[role]), "value": turn[content], **more}
        found.append(turn)
    return found


def _described(source: Path) -> dict[str, Any]:
    """The description of a file; empty without one. SchemaError if it cannot be read, or if there are several."""
    path = source.with_name(NAME)
    if path == source or not path.is_file():
        return {}
    try:
        found = parse_object(read_text(path))
    except SchemaError as error:
        raise SchemaError(f"{NAME} beside it cannot be read ({error}); mend it, or move it away") from error
    mine = [d for d in found.values() if isinstance(d, dict) and d.get("file_name") == source.name]
    apart = {str((d.get("columns"), d.get("tags"))) for d in mine}
    if len(apart) > 1:
        raise SchemaError(f"{NAME} beside it describes this file in {len(apart)} ways; keep one of them")
    for part in ("columns", "tags") if mine else ():
        if not isinstance(mine[0].get(part, {}), dict):
            raise SchemaError(f"{NAME} beside it: {part} must be an object of names")
    return mine[0] if mine else {}

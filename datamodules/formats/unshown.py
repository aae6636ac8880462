"""What nobody should learn from an entry: answers marked as bad, and texts about what the model is never shown."""

from __future__ import annotations

from typing import Any

from timeviper.datamodules.formats.fields import plain
from timeviper.datamodules.shards.schema import SchemaError

VERDICT = ("ktotag", "label")  # of LLaMA-Factory and of ms-swift: whether a person liked the answer
MARKS = {  # what stands in a text for something beside it, and the plain name of the field that has it
    "<audio>": ("audios", "audio", "its sound is not shown to the model"),
    "<bbox>": ("objects", "bbox", "boxes are not put into texts here; write their numbers there"),
    "<ref-object>": ("objects", "bbox", "objects are not put into texts here; write their names there"),
    "<tool_call>": ("tools", "functions", "tools are not shown to the model"),
}


def check_shown(fields: dict[str, Any]) -> None:
    """SchemaError for an entry whose answers must not be learned as they stand."""
    names = {plain(name): name for name in fields}
    for verdict in VERDICT:
        if names.get(verdict) and fields[names[verdict]] is False:
            raise SchemaError(f"has {names[verdict]} false: its answer is one that nobody should learn; leave it out")
    found = {mark: why for mark, (*beside, why) in MARKS.items() if names.keys() & set(beside)}
    for talk in fields.get("conversations") or []:
        for message in talk.get("messages") or [] if isinstance(talk, dict) else []:
            text = message.get("content") if isinstance(message, dict) else None
            if mark := next((m for m in found if isinstance(text, str) and m in text), None):
                raise SchemaError(f"has {mark} in a turn, but {found[mark]}", "text")

"""Instructions with their answers, as programs for fine-tuning have them, become turns.

    {"instruction": "...", "input": "...", "output": "...", "history": [["...", "..."]]}     LLaMA-Factory (alpaca)
    {"query": "...", "response": "...", "history": [["...", "..."]]}                         ms-swift
    {"conversation": [{"human": "...", "assistant": "..."}]}                                 ms-swift
    {"QA": [{"i": "...", "q": "...", "a": "..."}]}                                           VideoChat2

Media stand beside them, as everywhere: `images`, `videos`, `<image>`, `<video>`.
"""

from __future__ import annotations

from typing import Any

from timeviper.datamodules.formats.entry import Dialect
from timeviper.datamodules.formats.talk import as_text
from timeviper.datamodules.shards.schema import SchemaError

ASKED = (("instruction", "output"), ("query", "response"), ("prompt", "response"))
PAIRS = (("human", "assistant"), ("input", "output"))  # of a `conversation`
ALONE = ("messages", "conversations", "question", "caption")


def is_instruction(fields: dict[str, Any]) -> bool:
    """Whether an entry, by its names alone, is of one of these forms."""
    if any(name in fields for name in ALONE):
        return False
    if isinstance(fields.get("QA"), list) or isinstance(fields.get("conversation"), list):
        return True
    return any(asked in fields and answer in fields for asked, answer in ASKED)


def read_instruction(fields: dict[str, Any]) -> dict[str, Any]:
    """The entry with `messages`. SchemaError if a question has no answer, or an answer no question."""
    fields = dict(fields)
    if "QA" in fields:
        turns = _qa(fields.pop("QA"), fields)
    elif "conversation" in fields:
        turns = _rounds(fields.pop("conversation"), fields)
    else:
        asked, answer = next((names for names in ASKED if set(names) <= fields.keys()), ASKED[0])
        if asked not in fields or answer not in fields:
            raise SchemaError(f"needs {' or '.join(' with '.join(names) for names in ASKED)}")
        question = as_text(fields.pop(asked), asked)
        if str(more := fields.pop("input", "")).strip():
            question = f"{question}\n{as_text(more, 'input')}"
        turns = [*_history(fields.pop("history", [])), (question, fields.pop(answer))]
    messages = []
    for question, answer in turns:
        messages.append({"role": "user", "content": as_text(question, "question")})
        messages.append({"role": "assistant", "content": as_text(answer, "answer")})
    return {**fields, "messages": messages}


def _history(found: Any) -> list[tuple[Any, Any]]:
    """Earlier rounds, whose answers are learned, too, as in the programs that have them."""
    if not isinstance(found, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in found):
        raise SchemaError(f"history must be a list of [question, answer], got {str(found)[:80]}")
    return [(question, answer) for question, answer in found]


def _rounds(found: list[Any], fields: dict[str, Any]) -> list[tuple[Any, Any]]:
    """A `conversation`; a system prompt in its first round becomes one of the entry."""
    turns = []
    for number, pair in enumerate(found):
        names = next((n for n in PAIRS if isinstance(pair, dict) and set(n) <= pair.keys()), None)
        if names is None:
            raise SchemaError(f"conversation[{number}] must have human and assistant, got {str(pair)[:80]}")
        left = {name: value for name, value in pair.items() if name not in names}
        if system := left.pop("system", ""):
            _only(fields, "system", system)
        for name, value in left.items():
            _only(fields, name, value)
        turns.append((pair[names[0]], pair[names[1]]))
    return turns


def _qa(found: Any, fields: dict[str, Any]) -> list[tuple[Any, Any]]:
    """`i` opens the conversation; where there is no `q`, as in captions, it is what is asked."""
    if not isinstance(found, list) or not found or not all(isinstance(pair, dict) and "a" in pair for pair in found):
        raise SchemaError('QA must be a list of {"i": ..., "q": ..., "a": ...}')
    turns = []
    for pair in found:
        opening, question = str(pair.get("i") or "").strip(), str(pair.get("q") or "").strip()
        if not (opening or question):
            raise SchemaError(f"the answer {str(pair['a'])[:80]!r} has neither q nor i")
        if opening and question:
            _only(fields, "system", opening)
        for name, value in pair.items():
            if name not in ("i", "q", "a"):
                _only(fields, name, value)
        turns.append((question or opening, pair["a"]))
    return turns


def _only(fields: dict[str, Any], name: str, value: Any) -> None:
    """Put what a round says beside the rounds. SchemaError if another one says something else."""
    if fields.setdefault(name, value) != value:
        raise SchemaError(f"has several {name}; write an entry for each ({fields[name]!r}, {value!r})"[:300])


INSTRUCTIONS = Dialect("instructions", is_instruction, read_instruction)

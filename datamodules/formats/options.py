"""Multiple choice: options beside a question come into the question, because a letter alone cannot be learned.

Known are a list (`options`, `candidates`, `choices`), an object by letter, text that holds a list, and fields of their
own (`a0` to `a4`, `option_a`, `A` to `D`). The answer stays as it is written: a letter, or the text of an option; a
number counts from 0 where its field or the options' fields say so (`answer_index`, `a0`).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from typing import Any

from timeviper.datamodules.formats.fields import plain
from timeviper.datamodules.shards.schema import SchemaError

LISTS = (
    "options",
    "candidates",
    "choices",
    "answerchoices",
    "answeroptions",
    "multiplechoice",
    "multichoice",
    "option",
)
INDEX = ("answerindex", "answeridx", "answerid", "answernumber", "correctindex", "correctidx", "correctchoice")
INDEX += ("correctanswerindex", "correctoption", "label", "answerkeyposition")
INSIDE = ("choice", "option", "text", "content", "value", "answer")
SINGLE = re.compile(r"(?:(?:option|choice|candidate|opt|a)[ _-]?([0-9]|[a-hA-H])|([A-H]))")
MARKED = re.compile(r"\s*(?:\(([A-Za-z0-9])\)|([A-Za-z0-9])[.):：])\s*(.*)", re.DOTALL)
LETTER = re.compile(r"\(?([A-Z0-9])\)?[.:]?")
SEVERAL = re.compile(r"[A-Z](?:\s*[,;/&]?\s*[A-Z])+")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def take_options(fields: dict[str, Any]) -> tuple[list[str], bool]:
    """The options of an entry, taken out of it; whether their own names count from 0. Without any, an empty list."""
    names = {plain(name): name for name in fields}
    listed = [names[name] for name in LISTS if name in names]
    single: dict[str, str] = {}
    for name in fields:
        if found := SINGLE.fullmatch(name):
            single.setdefault((found[1] or found[2]).upper(), name)
    numbered = [single[str(i)] for i in range(10) if str(i) in single]
    lettered = [single[letter] for letter in LETTERS if letter in single]
    columns = max(numbered, lettered, key=len)
    if len(listed) + (len(columns) > 1) > 1:
        raise SchemaError(f"has its options twice ({', '.join([*listed, *columns])}); keep one of them")
    if listed:
        return _texts(fields.pop(listed[0]), listed[0]), False
    if len(columns) < 2 or single.keys().isdisjoint({"0", "1", "A"}):
        return [], False
    return [_text(fields.pop(name), name) for name in columns], "0" in single


def _texts(value: Any, name: str) -> list[str]:
    if isinstance(value, str):
        value = _read(value)
    if isinstance(value, dict):
        value = [f"{letter}. {_text(v, name)}" for letter, v in value.items()]
    if not isinstance(value, list) or not 2 <= len(value) <= len(LETTERS):
        raise SchemaError(f"{name} must be a list of 2 to {len(LETTERS)}, got {value!r}")
    return [_text(v, name) for v in value]


def _read(text: str) -> Any:
    """A list that stands in a cell of a table."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return list(found) if isinstance(found := parse(text), list | tuple) else found
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    parts = re.split(r"\n+|\s*\|\s*|\s*;\s*", text.strip())
    return parts if len(parts) > 1 else [p for p in re.split(r"\s*(?<![\w(])(?=\(?[A-H][.):])", text.strip()) if p]


def _text(value: Any, name: str) -> str:
    if isinstance(value, dict):
        inside = [value[key] for key in INSIDE if key in value]
        value = inside[0] if inside else value
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise SchemaError(f"{name} has {value!r}, which is no text")
    return str(value).strip()


def with_options(question: str, options: list[str]) -> tuple[str, list[str]]:
    """The question with its options, unless it shows them already; and the options as they are shown."""
    marked = [MARKED.fullmatch(option) for option in options]
    letters = [(m[1] or m[2]).upper() if m else "" for m in marked]
    if letters not in (list(LETTERS[: len(options)]), [str(i) for i in range(len(options))]):
        letters = [""]
    shown = options if all(letters) else [f"{letter}. {option}" for letter, option in zip(LETTERS, options)]
    bare = [m[3].strip() if m and all(letters) else option for m, option in zip(marked, options)]
    if all(text in question for text in bare):
        return question, shown
    return "\n".join([question.rstrip(), *shown]), shown


def choice(answer: Any, shown: list[str], index: bool) -> str:
    """The answer as it is to be learned: as it is written, or the option that it counts (from 0) if it is an `index`.

    SchemaError if it is none of the options that are shown.
    """
    marked = [found for option in shown if (found := MARKED.fullmatch(option))]
    texts = {(m[1] or m[2]).upper(): m[3].strip() for m in marked}
    written = str(answer).strip()
    is_text = written in shown or _same(written, texts.values())
    if index and written.isdecimal() and int(written) < len(shown):
        if is_text and not _same(written, [list(texts.values())[int(written)]]):
            raise SchemaError(f"the answer {answer!r} may be the text of an option or its number; write its letter")
        return shown[int(written)]
    if is_text and not isinstance(answer, bool):
        return written
    if isinstance(answer, str) and not written.isdecimal():
        letter = LETTER.fullmatch(written.upper())
        both = MARKED.fullmatch(written)
        if letter and letter[1] in texts:
            return written
        if both and _same(both[3], [texts.get((both[1] or both[2]).upper(), "")]):
            return written
        if SEVERAL.fullmatch(written) and set(re.findall("[A-Z]", written)) <= texts.keys():
            return written
    more = "; a number that counts the options from 0 is called answer_index" if written.isdecimal() else ""
    raise SchemaError(f"the answer {answer!r} is none of the options ({'; '.join(shown)[:200]}){more}")


def _same(text: str, others: Iterable[str]) -> bool:
    """Whether a text is one of others, but for case and a full stop."""
    return text.strip().rstrip(".").lower() in {other.rstrip(".").lower() for other in others}

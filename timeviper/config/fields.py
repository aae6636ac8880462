"""What `settings.py` says about a key: its type in words, its documentation, its neighbours."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal

Type = Any  # a type annotation, resolved


@cache
def field_types(section: type) -> dict[str, Type]:
    """The fields of a section with their resolved annotations."""
    return typing.get_type_hints(section)


@cache
def field_docs(section: type) -> dict[str, str]:
    """The string under each field; one string under several fields documents them all."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(tree, ast.ClassDef)
    docs: dict[str, str] = {}
    waiting: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            waiting.append(node.target.id)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docs.update(dict.fromkeys(waiting, inspect.cleandoc(str(node.value.value))))
            waiting = []
    return docs


def required(hint: Type) -> Type:
    """The type without `| None`."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (inner,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
        return inner
    return hint


def is_section(hint: Type) -> bool:
    """A section of named fields, such as `optim`."""
    return dataclasses.is_dataclass(required(hint))


def is_named(hint: Type) -> bool:
    """A section whose names people choose, such as `data.sources`."""
    return typing.get_origin(required(hint)) is dict


def child_type(hint: Type, name: str) -> Type | None:
    """The type of a key below a section, as it may be written; None if there is no such key."""
    hint = required(hint)
    if is_named(hint):
        inner = typing.get_args(hint)[1]
        return inner | None if is_section(inner) else inner  # null removes what an earlier layer has there
    return field_types(hint).get(name)


def is_removable(hint: Type, child: Type) -> bool:
    """Whether null takes a key away: an entry of a section of names, or a section that may be switched off."""
    return child is not required(child) and (is_named(hint) or is_section(child))


def describe(hint: Type) -> str:
    """The allowed values, in words."""
    inner = required(hint)
    suffix = " or null" if inner is not hint else ""
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        list[str]: "a list of words, such as [a, b]",
    }
    if typing.get_origin(inner) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(inner)))}{suffix}"
    if is_section(inner):
        return f"a section with {', '.join(field_types(inner))}{suffix}"
    if is_named(inner):
        return f"a section of names, each with {describe(child_type(inner, ''))}{suffix}"
    return words.get(inner, "any value") + suffix


def leaf_keys(section: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key below a section; a name that people choose is written `<name>`."""
    for name, hint in field_types(section).items():
        key, inner = f"{prefix}{name}", required(hint)
        if is_named(inner):
            key, inner = f"{key}.<name>", typing.get_args(inner)[1]
        if is_section(inner):
            yield from leaf_keys(inner, f"{key}.")
        else:
            yield key


def nearest(name: str, section: type, prefix: str, root: type) -> str:
    """A sentence that leads from an unknown name to the key that was meant."""
    known = list(field_types(section))
    if "." in name:
        return f"In a file, sections are nested: `{name.replace('.', ': {')}: ...{'}' * name.count('.')}`."
    if close := get_close_matches(name, known, n=1, cutoff=0.6):
        return f"Did you mean {prefix}{close[0]}?"
    elsewhere = [key for key in leaf_keys(root) if key.rsplit(".", 1)[-1] == name]
    if elsewhere:
        return f"Did you mean {' or '.join(elsewhere[:3])}?"
    return f"Known here: {', '.join(known)}."


def doc(root: type, key: str) -> str:
    """The documentation of a dotted key."""
    hint, text = root, ""
    for name in key.split("."):
        if is_section(hint):
            text = field_docs(required(hint)).get(name, "")
        hint = child_type(hint, name)
    return text


def differing(ours: Any, theirs: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted paths where two nested dicts differ, with both values; None for what one of them lacks."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        dot = f"{prefix}." if prefix else ""
        keys = sorted(set(ours) | set(theirs))
        return [d for k in keys for d in differing(ours.get(k), theirs.get(k), f"{dot}{k}")]
    return [] if ours == theirs else [(prefix, ours, theirs)]


def differences(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    """`differing` as lines for a message."""
    return [f"{key}: {b!r} there, {a!r} here" for key, a, b in differing(ours, theirs, prefix)]

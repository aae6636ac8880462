"""Sections of settings from plain dicts, as `dataclasses.asdict` makes them: without files, layers or presets."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from timeviper.config.fields import field_types, is_named, is_section, required

Section = TypeVar("Section")


def section(kind: type[Section], data: Mapping[str, Any], where: str = "") -> Section:
    """A section with the values of `data`, defaults for what it does not have. where: what the keys begin with.

    Raises ValueError for a key that the section does not have.
    """
    known = field_types(kind)
    if unknown := [name for name in data if name not in known]:
        raise ValueError(
            f"{where}{unknown[0]} is no setting of this version (known here: {', '.join(known)}); a later one wrote it"
        )
    return kind(**{name: _value(known[name], value, f"{where}{name}.") for name, value in data.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if value is None:
        return None
    if is_section(hint):
        return section(required(hint), value, where)
    if is_named(hint) and is_section(inner := typing.get_args(required(hint))[1]):
        return {name: section(required(inner), entry, f"{where}{name}.") for name, entry in value.items()}
    return value

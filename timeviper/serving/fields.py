"""Values out of a request's JSON: of the right type and range, or a sentence with the name of the field."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from timeviper.errors import did_you_mean, one_of
from timeviper.serving.problems import ApiError, shown

DEPTH = 32  # of nested values


class Fields:
    """An object of a request, read field by field; `end` refuses what nobody has read."""

    def __init__(self, value: object, where: str = "") -> None:
        if not isinstance(value, Mapping):
            raise ApiError(400, f"{where or 'the body'} must be an object, got {shown(value)}", where or None)
        self.value, self.where = value, where
        self._read: set[str] = set()

    def name(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def has(self, key: str) -> bool:
        return self.value.get(key) is not None

    def raw(self, key: str) -> Any:
        """Any value; None if it is not there."""
        self._read.add(key)
        return self.value.get(key)

    def refuse(self, key: str, what: str) -> ApiError:
        return ApiError(400, f"{self.name(key)} {what}, got {shown(self.value.get(key))}", self.name(key))

    def text(self, key: str, default: str | None = None, longest: int = 1 << 20) -> str:
        value = self.raw(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or len(value) > longest:
            raise self.refuse(key, f"must be text of at most {longest:,} characters")
        return checked_text(value, self.name(key))

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self.raw(key)
        if value is None and default is not None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(key, f"must be a whole number from {low:,} to {high:,}")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """From `low` to `high`."""
        value = self.raw(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # no NaN is
            raise self.refuse(key, f"must be a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(key, "must be true or false")
        return value

    def items(self, key: str, most: int) -> list[Any]:
        value = self.raw(key)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > most:
            raise self.refuse(key, f"must be a list of at most {most:,}")
        return value

    def inner(self, key: str) -> Fields:
        """An object in it; one without fields if it is not there."""
        value = self.raw(key)
        return Fields({} if value is None else value, self.name(key))

    def end(self, ignored: Collection[str] = ()) -> None:
        """400 for a field that nobody has read: a mistyped one must not pass for one that was obeyed."""
        for key in self.value:
            if key not in self._read and key not in ignored and self.value[key] is not None:
                known = sorted(self._read)
                hint = did_you_mean(str(key), known) or f" There are {one_of(known)}."
                raise ApiError(400, f"there is no {shown(self.name(str(key)))}.{hint}", self.name(str(key))[:80])


def checked_text(text: str, where: str) -> str:
    """400 for text that is none in Unicode (half of a pair of surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ApiError(400, f"{where} holds half of a character (a lone surrogate)", where) from None
    return text


def parse_json(body: bytes) -> object:
    """400 for what is no JSON, or nested without end."""
    try:
        value = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not JSON in UTF-8") from None
    _check_depth(value, DEPTH)
    return value


def _no_number(word: str) -> None:
    raise ValueError(word)


def _check_depth(value: object, left: int) -> None:
    if left == 0:
        raise ApiError(400, f"the body is nested more than {DEPTH} deep")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in inner:
        if isinstance(part, dict | list):
            _check_depth(part, left - 1)

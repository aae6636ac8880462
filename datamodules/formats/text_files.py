"""Text files of other people, read with bounds: neither a line nor a file may fill the memory."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from timeviper.datamodules.shards.schema import MAX_JSON, SchemaError

MAX_LIST = 2 << 30  # bytes of a .json list, which is parsed as a whole and then takes 3 to 6 times as much memory
CHUNK = 1 << 20


def read_lines(path: Path) -> Iterator[tuple[int, str | SchemaError]]:
    """Number and text of each line that is not blank, without its end; of an unusable one, what is wrong with it.

    Of a line longer than MAX_JSON no more than that is ever in memory; reading goes on behind it.
    """
    with path.open("rb", buffering=CHUNK) as file:
        number = 0
        while line := file.readline(MAX_JSON + 1):
            if len(line) > MAX_JSON:
                number += 1
                if not line.endswith(b"\n"):
                    _skip_line(file)
                yield number, SchemaError(f"is longer than {MAX_JSON} bytes; split the sample")
                continue
            for one in line.strip().split(b"\r"):  # which ends the lines of old Macs
                number += 1
                try:
                    if text := one.decode("utf-8-sig" if number == 1 else "utf-8").strip():
                        yield number, text
                except UnicodeDecodeError as error:
                    yield number, not_utf8(error)


def is_lines(path: Path) -> bool:
    """Whether a file holds a JSON object a line, as .jsonl does; else one list or object, as .json does.

    Its first lines decide: each is found under the other's name.
    """
    with path.open("rb") as file:
        lines = (line.removeprefix(codecs.BOM_UTF8).strip() for line in iter(lambda: file.readline(CHUNK), b""))
        heads = list(islice((line for line in lines if line), 3))
    first = heads[0] if heads else b""
    if path.suffix.lower() == ".json":
        return len(heads) > 1 and first.startswith(b"{") and any(_parses(head, dict) for head in heads)
    is_list = first.startswith(b"[") and not (len(heads) > 1 and _parses(first, list))
    return not is_list and not (first == b"{" and len(heads) > 1 and heads[1].startswith(b'"'))


def _parses(line: bytes, kind: type) -> bool:
    try:
        return isinstance(parse_json(line), kind)
    except SchemaError:
        return False


def _skip_line(file: BinaryIO) -> None:
    """Go behind the end of the line; reading lines for that is twenty times slower."""
    while chunk := file.read(CHUNK):
        if (end := chunk.find(b"\n")) >= 0:
            file.seek(end + 1 - len(chunk), os.SEEK_CUR)
            return


def read_text(path: Path) -> str:
    """A small file as text, without a byte order mark."""
    return decode_text(read_bytes(path), path.name)


def read_bytes(path: Path) -> bytes:
    """A small file."""
    if (size := path.stat().st_size) > MAX_JSON:
        raise SchemaError(f"{path.name} has {size} bytes, more than {MAX_JSON}; split the sample")
    return path.read_bytes()


def decode_text(raw: bytes, name: str) -> str:
    """UTF-8, or UTF-16 where a byte order mark says so, as some editors of Windows write it."""
    try:
        return raw.decode("utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise SchemaError(f"{name} {not_utf8(error)}") from error


def read_list(path: Path) -> Any:
    """What a .json file holds."""
    if (size := path.stat().st_size) > MAX_LIST:
        raise SchemaError(
            f"has {size} bytes, more than {MAX_LIST} that are read as one list; write it as JSONL, "
            f"one entry a line (jq -c '.[]' {path.name} > {path.stem}.jsonl)"
        )
    content = path.read_bytes()
    try:
        return parse_json(content)
    except SchemaError as error:
        if "Extra data" not in str(error):
            raise
    return _in_a_row(content.decode("utf-8-sig", "replace"))


def _in_a_row(text: str) -> list[Any]:
    """Objects that follow each other without being a list."""
    decoder, found, at = json.JSONDecoder(parse_constant=_constant), [], 0
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise SchemaError(f"not valid JSON: {error}") from error
        found.append(value)
        at += len(text[at : at + CHUNK]) - len(text[at : at + CHUNK].lstrip(" \t\r\n,"))
    return found


def parse_json(text: str | bytes) -> Any:
    """SchemaError for all that is no JSON. NaN, which tables leave where they have nothing, is null."""
    try:
        return json.loads(text, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"not valid JSON: {error}") from error


def parse_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(found := parse_json(text), dict):
        raise SchemaError(f"must be an object, got {type(found).__name__}")
    return found


def not_utf8(error: UnicodeDecodeError) -> SchemaError:
    return SchemaError(f"is not UTF-8 ({error.reason} at byte {error.start}); convert it, for instance with iconv")


def _constant(constant: str) -> None:
    if constant != "NaN":
        raise ValueError(f"{constant} is not a number of JSON")


def files_below(root: Path) -> list[Path]:
    """All files, links to files included, without hidden ones and hidden folders."""
    found = []
    for folder, folders, names in os.walk(root, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(found)

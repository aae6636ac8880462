"""Parquet files, and data sets as Hugging Face's `datasets` keeps them: a row is an entry, read in batches.

A source is a `.parquet` or `.arrow` file, a folder of Parquet as the Hub has it (`train-00000-of-00002.parquet`), or
what `save_to_disk` writes (`state.json`, or `dataset_dict.json` with a folder a split). Files in cells stay there until
they are written. It needs pyarrow, which is an extra: 170 MB on the disk that only those need whose data are such.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from timeviper.datamodules.formats.arrow_rows import Columns
from timeviper.datamodules.formats.cells import ARROW, BUFFER, PARQUET, ROWS, arrow, batches
from timeviper.datamodules.formats.clip_lists import SPLITS
from timeviper.datamodules.formats.entry import Entry, Format
from timeviper.datamodules.formats.fields import MEDIA
from timeviper.datamodules.formats.tars import FAILED
from timeviper.datamodules.formats.text_files import files_below, parse_object, read_text
from timeviper.datamodules.shards.schema import SchemaError

BATCH = 256  # rows without files that are in memory at once
NUMBERED = re.compile(r"(?P<split>[A-Za-z_]+)?-?(?P<number>\d{5})-of-(?P<all>\d{5})")
POINTER = b"version https://git-lfs"
MISSING = "pieces of the set are not there, as their names tell: what is there is read"


def read_arrow(source: Path, ignore: Collection[str] = ()) -> Iterator[Entry]:
    """All rows without columns in `ignore`; a file or block that cannot be read is one unusable entry."""
    arrow()
    root = source if source.is_dir() else source.parent
    files = _files(source)
    for name, there, wanted in _incomplete(files):
        yield Entry(f"{name} ({there} of {wanted})", {}, notes=(MISSING,))
    for path, split in files:
        where = str(path.relative_to(root))
        try:
            yield from _rows(path, where, split, ignore)
        except (SchemaError, OSError, ValueError) as error:  # pyarrow's own are of ValueError or OSError
            yield Entry(where, error if isinstance(error, SchemaError) else SchemaError(_damaged(path, error)))


def _files(source: Path) -> list[tuple[Path, str]]:
    """The data files with the split of each, "" if none is told."""
    if not source.is_dir():
        return [(source, _split(source))]
    if (several := source / "dataset_dict.json").is_file():
        splits = parse_object(read_text(several)).get("splits")
        if not isinstance(splits, list) or not all(_is_inside(s) and (source / s).is_dir() for s in splits):
            raise SchemaError(f"its dataset_dict.json names splits {splits!r} that are not all folders there")
        return [(path, split) for split in splits for path, _ in _files(source / split)]
    if (state := source / "state.json").is_file():
        listed = parse_object(read_text(state)).get("_data_files")
        if not isinstance(listed, list) or not all(
            isinstance(f, dict) and _is_inside(f.get("filename")) for f in listed
        ):
            raise SchemaError("its state.json lists no data files of its folder (_data_files)")
        return [(source / f["filename"], "") for f in listed]
    return [(path, _split(path)) for path in _parquet_below(source)]


def _is_inside(name: Any) -> bool:
    """Whether a name is one of a file in the folder: what is read is not for a file of the source to choose."""
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def _parquet_below(source: Path) -> list[Path]:
    """Parquet files, without those that download tools keep about a tar or a folder of the same name."""
    files = [path for path in files_below(source) if path.suffix.lower() in PARQUET]
    return [p for p in files if not p.with_suffix(".tar").is_file() and not p.with_suffix("").is_dir()]


def _split(path: Path) -> str:
    """By its name (train-00000-of-00002) or that of its folder."""
    named = NUMBERED.fullmatch(path.stem)
    found = (named and named["split"]) or path.parent.name
    return found if found in SPLITS else ""


def _incomplete(files: list[tuple[Path, str]]) -> Iterator[tuple[str, int, int]]:
    """Sets of which numbered pieces are missing: name, pieces there, and how many there should be."""
    there: dict[tuple[Path, str, int], int] = {}
    for path, _ in files:
        if named := NUMBERED.fullmatch(path.stem):
            key = (path.parent, named["split"] or "", int(named["all"]))
            there[key] = there.get(key, 0) + 1
    yield from ((name, n, wanted) for (_, name, wanted), n in there.items() if n < wanted)


def _rows(path: Path, where: str, split: str, ignore: Collection[str]) -> Iterator[Entry]:
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise SchemaError("is a pointer of Git LFS, not the data; run git lfs pull")
    number = 0
    for block, columns, batch in _blocks(path, ignore):
        if isinstance(batch, SchemaError):
            yield Entry(f"{where}, block {block}", batch)
            continue
        for row in columns.rows(path, block, batch):
            if columns.kinds and isinstance(row, dict) and _has_failed(row):
                yield Entry(f"{where}, row {number}", {}, notes=(FAILED,))
                number += 1
                continue
            fields = row if isinstance(row, SchemaError) or not split else {"split": split, **row}
            yield Entry(f"{where}, row {number}", fields)
            number += 1


def _has_failed(row: dict[str, Any]) -> bool:
    """Whether a download tool says there that it did not get the file."""
    return str(row.get("status", "success")) != "success" and not row.keys() & MEDIA.keys()


def _blocks(path: Path, ignore: Collection[str]) -> Iterator[tuple[int, Columns, Any]]:
    """Each block's columns and its batches, one after the other; for a damaged block what is wrong with it."""
    pa = arrow()
    if path.suffix.lower() in ARROW:
        for block, batch in enumerate(batches(path)):
            columns = Columns(batch.schema, ignore)
            for at in range(0, batch.num_rows, ROWS):
                columns.first = at
                yield block, columns, batch.slice(at, ROWS)
        return
    with pa.parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
        for block in range(file.num_row_groups):
            columns = Columns(file.schema_arrow, ignore)
            wanted, light = columns.projection(file, block)
            try:
                for batch in file.iter_batches(BATCH if light else ROWS, row_groups=[block], columns=wanted):
                    yield block, columns, batch
                    columns.first += batch.num_rows
            except (OSError, ValueError) as error:
                if isinstance(error, SchemaError):
                    raise
                yield block, columns, SchemaError(_damaged(path, error))


def _damaged(path: Path, error: Exception) -> str:
    return f"{path.name} is not whole, or no {path.suffix[1:].title()} file: {error}"[:400]


def _matches(source: Path) -> bool:
    if not source.is_dir():
        return source.suffix.lower() in PARQUET + ARROW
    saved = (source / "dataset_dict.json").is_file() or (
        (source / "state.json").is_file() and "_data_files" in json.dumps(_object(source / "state.json"))
    )
    return saved or bool(_parquet_below(source))


def _object(path: Path) -> dict[str, Any]:
    try:
        return parse_object(read_text(path))
    except (SchemaError, OSError):
        return {}


TABLES = Format("arrow", "Parquet or Arrow", _matches, read_arrow, endings=(*PARQUET, *ARROW), folders=True)

"""The shards behind a URL: which there are, and what their indexes say.

A store that can be listed (s3, gs, ...) tells names and sizes; a web server cannot, so there `index.safetensors` of the
folder, which `timeviper shards index FOLDER` writes, says what there is. Either way it is read first, by one process of
a node, in ranges: the index of each shard would be one more request for each. Sizes that a store tells must be those of
the index. `index.json`, its older form, is read where it is not there.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from pathlib import Path

from timeviper.datamodules.remote.patience import PATIENCE
from timeviper.datamodules.remote.storage import StorageError, hindrance, list_tars, notice, read_file, read_range
from timeviper.datamodules.shards.address import is_http, near, shown, split_query
from timeviper.datamodules.shards.column_file import FILE
from timeviper.datamodules.shards.column_join import columns_of, join, pick
from timeviper.datamodules.shards.columns import Columns
from timeviper.datamodules.shards.folder import of_file
from timeviper.datamodules.shards.index_file import MERGED, SUFFIX, ShardIndex, decode
from timeviper.datamodules.shards.node_files import NodeFiles

REMEDY = "run `timeviper shards index FOLDER` where the shards were made, and upload the indexes again"
REQUESTS = 16  # for indexes, at a time
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class _Ways:
    """How files come here."""

    nodes: NodeFiles
    patience: float


def load_remote(where: str, cache: str | Path = "", patience: float = PATIENCE) -> Columns:
    """All shards that a URL names, in order of their names.

    `where` is the URL of a folder, of its index, of a tar, of several tars with braces
    (`shard-{00000..00009}.tar`), or a glob where the store can be listed. cache: as `data.cache`. A store that is away
    is waited for `patience` seconds. ValueError for people.
    """
    if problem := hindrance(where):
        raise ValueError(f"no shards: {shown(where)}: {problem}")
    try:
        with notice(f"reading the index of {shown(where)}"):
            path, query = split_query(where)
            found = join(_load([url + query for url in expand(path)], _Ways(NodeFiles(cache), patience)))
            places = found.locations()
            return pick(found, sorted(range(len(found)), key=places.__getitem__))
    except OSError as error:
        raise ValueError(f"no shards: {error}") from error


def _load(urls: list[str], ways: _Ways) -> list[Columns]:
    tars = [url for url in urls if split_query(url)[0].endswith(".tar") and not _is_glob(url)]
    named = set(tars)
    return [*_find(tars, ways), *(part for url in urls if url not in named for part in _listed(url, ways))]


def _listed(where: str, ways: _Ways) -> list[Columns]:
    """The shards of a folder, an index or a glob."""
    if split_query(where)[0].endswith((".json", ".safetensors")):
        return [_read(where, ways)]
    sizes = list_tars(where if _is_glob(where) else f"{where.rstrip('/')}/*.tar", ways.patience)
    if sizes is None:
        return [_unlisted(where, ways)]
    if not sizes:
        raise ValueError(f"no shards: {where} has no .tar in it")
    found = _find([*sizes], ways, all_of_them=not _is_glob(where))
    for part in found:
        _check(part, sizes)
    return found


def _is_glob(where: str) -> bool:
    path = split_query(where)[0]
    return "*" in path or "[" in path


def expand(pattern: str) -> Iterator[str]:
    """`a{1,2}b` to a1b, a2b, and `{08..11}` to 08, 09, 10, 11, wherever they stand.

    ValueError for a brace that is neither.
    """
    parts = BRACES.split(pattern)
    if any(mark in text for mark in "{}" for text in parts[::2]):
        raise ValueError(f"the braces in {pattern} do not match; write {{00000..00009}} or {{a,b}}")
    for chosen in product(*(_choices(text, pattern) for text in parts[1::2])):
        yield "".join(text + choice for text, choice in zip(parts[::2], (*chosen, "")))


def _choices(text: str, pattern: str) -> list[str]:
    if match := RANGE.fullmatch(text):
        first, last = match.groups()
        if int(first) > int(last):
            raise ValueError(f"{{{text}}} in {pattern} runs backwards")
        return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    if "," not in text:
        raise ValueError(f"{{{text}}} in {pattern} is no range; write {{00000..00009}} or {{a,b}}")
    return text.split(",")


def _unlisted(where: str, ways: _Ways) -> Columns:
    """Of a folder that cannot be listed."""
    if _is_glob(where):
        how = "a web server cannot" if is_http(where) else "these credentials may not"
        raise ValueError(f"no shards: {shown(where)}: {how} list files; name the folder or use {{00000..00009}}")
    path, query = split_query(where)
    folder = f"{path.rstrip('/')}/"
    if (found := _of_folder(f"{folder}x{query}", ways)) is not None:
        return found
    raise ValueError(
        f"no shards: {shown(folder + FILE + query)} does not exist, and without it nothing tells which shards there "
        f"are; {REMEDY} (or name the tars: {folder}shard-{{00000..00009}}.tar)"
    )


def _of_folder(beside: str, ways: _Ways) -> Columns | None:
    """The shards of the folder of a file; None where no index of all is there, or none may be read."""
    for name in (FILE, MERGED):
        try:
            return _read(near(beside, name), ways)
        except FileNotFoundError:
            continue
        except StorageError as error:
            # A signature may be of a tar alone, or of the files beside it, too; and some stores say 403 for 404.
            if not split_query(beside)[1] and not (name == FILE and isinstance(error.__cause__, PermissionError)):
                raise
    return None


def _read(url: str, ways: _Ways) -> Columns:
    """The shards that an index of many tells of."""
    if split_query(url)[0].endswith(".json"):
        raw = read_file(url, ways.patience)
        return columns_of(decode(raw, shown(url), REMEDY, lambda name: near(url, name)), url)
    with ThreadPoolExecutor(REQUESTS) as pool:
        several = partial(_several, pool)
        return of_file(
            partial(_range, url, ways.patience),
            shown(url),
            REMEDY,
            url,
            split_query(url)[0],
            ways.nodes,
            small=0,
            reading=several,
        )


def _range(url: str, patience: float, start: int, stop: int) -> bytes:
    """As `read_range`, but FileNotFoundError where there is no file."""
    try:
        return read_range(url, start, stop, patience)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        raise


def _several(pool: ThreadPoolExecutor, function: Callable[[int], bytes], starts: Iterable[int]) -> Iterator[bytes]:
    """As `map`, a few requests ahead."""
    left, begun = iter(starts), deque()
    while True:
        begun.extend(pool.submit(function, start) for start in islice(left, REQUESTS - len(begun)))
        if not begun:
            return
        yield begun.popleft().result()


def _find(tars: list[str], ways: _Ways, all_of_them: bool = False) -> list[Columns]:
    """These tars: from the index of their folder, else one by one.

    `all_of_them`: these are all that the folder has, so that its index must not know of more.
    """
    wanted, found = dict.fromkeys(tars), []
    for beside in {near(tar, ""): tar for tar in tars}.values():
        if (part := _of_folder(beside, ways)) is None:
            continue
        there = part.locations()
        if all_of_them and (gone := [place for place in there if place not in wanted]):
            raise ValueError(
                f"{_named(gone)} is in its folder's index but not there; upload the shards again, or {REMEDY}"
            )
        found.append(pick(part, [number for number, place in enumerate(there) if place in wanted]))
        for place in there:
            wanted.pop(place, None)
    with ThreadPoolExecutor(REQUESTS) as pool:
        own = dict(zip(wanted, pool.map(partial(_own, ways=ways), wanted)))
    if lacking := [tar for tar, shard in own.items() if shard is None]:
        raise ValueError(f"no index of {_named(lacking)} is there; {REMEDY}")
    return [*found, columns_of(shard for shard in own.values() if shard)]


def _named(tars: list[str]) -> str:
    return ", ".join(map(shown, tars[:3])) + (f" and {len(tars) - 3} more" if len(tars) > 3 else "")


def _own(tar: str, ways: _Ways) -> ShardIndex | None:
    name = split_query(tar)[0].rpartition("/")[2].removesuffix(".tar") + SUFFIX
    try:
        url = near(tar, name)
        shards = decode(read_file(url, ways.patience), shown(url), REMEDY, lambda name: near(url, name))
    except FileNotFoundError:
        return None
    except StorageError as error:
        if not split_query(tar)[1]:
            raise
        raise StorageError(
            f"{error}; a signature must be of the whole folder (a SAS of the container, a policy for a path), as the "
            f"index {name} beside the tar is read with it, too; or use the store's own address (s3://, gs://, abfs://)"
        ) from error
    return next((shard for shard in shards if shard.location == tar), None)


def _check(shards: Columns, sizes: dict[str, int]) -> None:
    """StorageError unless all are as large as the store says."""
    for place, size in zip(shards.locations(), shards.arrays["shard_bytes"].tolist()):
        if size != sizes[place]:
            raise StorageError(f"{place} has {sizes[place]} bytes, but its index is of {size}; {REMEDY}")

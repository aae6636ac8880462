"""The shards behind a URL: which there are, and what their indexes say.

A store that can be listed (s3, gs, ...) tells names and sizes; a web server cannot, so there the merged `index.json` of
the folder, which `timeviper shards index FOLDER` writes, says what there is. Either way it is read first: one request
where the index of each shard would be one more. Sizes that a store tells must be those of the index.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product

from timeviper.datamodules.remote.storage import StorageError, hindrance, list_tars, notice, read_file
from timeviper.datamodules.shards.address import is_http, near, shown, split_query
from timeviper.datamodules.shards.index_file import MERGED, SUFFIX, ShardIndex, decode

REMEDY = "run `timeviper shards index FOLDER` where the shards were made, and upload the indexes again"
REQUESTS = 16  # for indexes, at a time
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


def load_remote(where: str) -> list[ShardIndex]:
    """All shards that a URL names, in order of their names.

    `where` is the URL of a folder, of a merged index, of a tar, of several tars with braces
    (`shard-{00000..00009}.tar`), or a glob where the store can be listed. ValueError for people.
    """
    if problem := hindrance(where):
        raise ValueError(f"no shards: {shown(where)}: {problem}")
    try:
        with notice(f"reading the index of {shown(where)}"):
            path, query = split_query(where)
            shards = _load([url + query for url in expand(path)])
            return sorted(shards, key=lambda shard: shard.location)
    except OSError as error:
        raise ValueError(f"no shards: {error}") from error


def _load(urls: list[str]) -> list[ShardIndex]:
    tars = [url for url in urls if split_query(url)[0].endswith(".tar") and not _is_glob(url)]
    places = [url for url in urls if url not in set(tars)]
    return [*_find(tars), *(shard for url in places for shard in _listed(url))]


def _listed(where: str) -> list[ShardIndex]:
    """The shards of a folder, a merged index or a glob."""
    if split_query(where)[0].endswith(".json"):
        return _read(where)
    sizes = list_tars(where if _is_glob(where) else f"{where.rstrip('/')}/*.tar")
    if sizes is None:
        return _unlisted(where)
    if not sizes:
        raise ValueError(f"no shards: {where} has no .tar in it")
    return _checked(_find(list(sizes), all_of_them=not _is_glob(where)), sizes)


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


def _unlisted(where: str) -> list[ShardIndex]:
    """Of a folder that cannot be listed."""
    if _is_glob(where):
        how = "a web server cannot" if is_http(where) else "these credentials may not"
        raise ValueError(f"no shards: {shown(where)}: {how} list files; name the folder or use {{00000..00009}}")
    path, query = split_query(where)
    folder = f"{path.rstrip('/')}/"
    url = f"{folder}{MERGED}{query}"
    try:
        return _read(url)
    except FileNotFoundError as error:
        raise ValueError(
            f"no shards: {shown(url)} does not exist, and without it nothing tells which shards there are; {REMEDY} "
            f"(or name the tars: {folder}shard-{{00000..00009}}.tar)"
        ) from error


def _read(url: str) -> list[ShardIndex]:
    return decode(read_file(url), shown(url), REMEDY, lambda name: near(url, name))


def _find(tars: list[str], all_of_them: bool = False) -> list[ShardIndex]:
    """The indexes of these tars: from the merged one of their folder, else one by one.

    `all_of_them`: these are all that the folder has, so that the merged index must not know of more.
    """
    found: dict[str, ShardIndex] = {}
    for merged in sorted({near(tar, MERGED) for tar in tars}):
        try:
            found |= {shard.location: shard for shard in _read(merged)}
        except FileNotFoundError:
            continue
        except StorageError:  # a signature may be of a tar alone, or of the files beside it, too
            if not split_query(merged)[1]:
                raise
    if all_of_them and (gone := sorted(found.keys() - set(tars))):
        raise ValueError(f"{_named(gone)} is in {MERGED} but not there; upload the shards again, or {REMEDY}")
    missing = [tar for tar in tars if tar not in found]
    with ThreadPoolExecutor(REQUESTS) as pool:
        found |= {tar: shard for tar, shard in zip(missing, pool.map(_own, missing)) if shard}
    if lacking := [tar for tar in tars if tar not in found]:
        raise ValueError(f"no index of {_named(lacking)} is there; {REMEDY}")
    return [found[tar] for tar in tars]


def _named(tars: list[str]) -> str:
    return ", ".join(map(shown, tars[:3])) + (f" and {len(tars) - 3} more" if len(tars) > 3 else "")


def _own(tar: str) -> ShardIndex | None:
    name = split_query(tar)[0].rpartition("/")[2].removesuffix(".tar") + SUFFIX
    try:
        shards = _read(near(tar, name))
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


def _checked(shards: list[ShardIndex], sizes: dict[str, int]) -> list[ShardIndex]:
    """The shards, if all are as large as the store says."""
    for shard in shards:
        if shard.bytes != sizes[shard.location]:
            raise StorageError(
                f"{shard.location} has {sizes[shard.location]} bytes, but its index is of {shard.bytes}; {REMEDY}"
            )
    return shards

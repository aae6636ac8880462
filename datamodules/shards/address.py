"""Places of shards: a path, or a URL, which on the web may carry a query such as a signature."""

from __future__ import annotations


def is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def split_query(place: str) -> tuple[str, str]:
    """An address of the web without its query, and "?..." or nothing. Elsewhere "?" is a character of a name."""
    path, mark, query = place.partition("?") if is_http(place) else (place, "", "")
    return path, mark + query


def file_name(place: str) -> str:
    """Without the folders and the query."""
    return split_query(place)[0].rpartition("/")[2]


def near(place: str, name: str) -> str:
    """The file of this name in the folder of `place`, with the query of it."""
    path, query = split_query(place)
    return f"{path.rpartition('/')[0]}/{name}{query}"


def shown(place: str) -> str:
    """What a message and a log may say of it: a signature opens the file to everybody who reads it."""
    path, query = split_query(place)
    return f"{path}?..." if query else path

"""Addresses and names of files that strangers send: nothing is fetched or read that the operator has not named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from elsewhere import Elsewhere
from served import Served, serving, video_part
from video_helpers import write_clip

from timeviper.inference.ask import LoadedModel
from timeviper.serving import remote
from timeviper.serving.problems import ApiError
from timeviper.serving.remote import Fetcher, is_public

QUESTION = "What colour is the ring?"


# ---- URLs ----


def test_nothing_is_fetched_unless_the_operator_says_so(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("a name was resolved"))
    for url in ("http://127.0.0.1/x.mp4", "https://example.org/x.mp4", "http://169.254.169.254/latest/meta-data"):
        body = {"messages": [{"role": "user", "content": [video_part(url), QUESTION]}]}
        refused = served.server.asker.media.fetcher
        with pytest.raises(ApiError, match="fetches nothing from elsewhere") as error:
            refused.fetch(url, lambda _: None)
        assert error.value.status == 400
        assert body
    monkeypatch.undo()
    reply = served.ask(video_part("http://127.0.0.1:1/x.mp4"), QUESTION)
    assert (reply.status, "127.0.0.1" in reply.error) == (400, False)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "x"],
)  # fmt: skip
def test_addresses_that_are_not_of_the_wide_network(address: str) -> None:
    assert not is_public(address)
    assert is_public("93.184.216.34")
    assert is_public("2606:2800:220:1:248:1893:25c8:1946")


def fetcher(port: int, resolve: Any, public: Any = lambda a: a == "127.0.0.1", **more: Any) -> Fetcher:
    ports = {"http": port, "https": 443}
    return Fetcher(("media.example",), 10_000, resolve=resolve, public=public, ports=ports, **more)


def fetched(by: Fetcher, url: str) -> bytes:
    found = bytearray()
    by.fetch(url, found.extend)
    return bytes(found)


def test_a_named_domain_is_fetched_from_the_address_that_was_checked(elsewhere: int) -> None:
    asked: list[str] = []

    def resolve(host: str, _: int) -> list[str]:
        asked.append(host)
        return (
            ["127.0.0.1"] if len(asked) == 1 else pytest.fail("resolved again: the name could point elsewhere by now")
        )

    assert fetched(fetcher(elsewhere, resolve), "http://a.media.example/clip.mp4?x=1") == b"x" * 1000
    assert (asked, Elsewhere.seen) == (["a.media.example"], ["/clip.mp4?x=1"])


def test_names_that_point_into_the_network_are_not_connected_to(elsewhere: int) -> None:
    for found in (["10.0.0.1"], ["93.184.216.34", "127.0.0.1"], []):
        by = fetcher(elsewhere, lambda *_, found=found: found, is_public)
        with pytest.raises(ApiError, match="the file cannot be fetched") as error:
            fetched(by, "http://media.example/x")
        assert error.value.status == 422
        assert "10.0" not in error.value.message
    assert Elsewhere.seen == []


@pytest.mark.parametrize(
    "url",
    ["http://other.example/x", "http://media.example.evil/x", "http://evilmedia.example/x", "http://user@media.example/x",
     "http://media.example:22/x", "http://media.example\\@evil/x", "http://evil\\.media.example/x", "ftp://media.example/x",
     "http://media.example /x", "http://[::1]/x", "http://127.0.0.1/x", "http://media.example%00/x", "http:///x"],
)  # fmt: skip
def test_urls_that_are_read_in_two_ways_or_name_others(elsewhere: int, url: str) -> None:
    with pytest.raises(ApiError) as error:
        fetched(fetcher(elsewhere, lambda *_: pytest.fail("resolved")), url)
    assert error.value.status == 400


def test_each_redirect_is_checked_anew(elsewhere: int) -> None:
    by = fetcher(elsewhere, lambda *_: ["127.0.0.1"])
    for target in (
        "http://127.0.0.1/secret",
        "http://evil.example/secret",
        "file:///etc/passwd",
        "ftp://media.example/",
    ):
        Elsewhere.target = target
        with pytest.raises(ApiError):
            fetched(by, "http://media.example/to")
        assert Elsewhere.seen.pop() == "/to"
        assert Elsewhere.seen == []
    Elsewhere.target = "/to"
    with pytest.raises(ApiError, match="more than 3 redirects"):
        fetched(by, "http://media.example/to")
    assert len(Elsewhere.seen) == remote.REDIRECTS + 1
    Elsewhere.target = "/clip.mp4"
    assert len(fetched(by, "http://media.example/to")) == 1000


def test_a_fetched_file_is_bounded(elsewhere: int) -> None:
    by = fetcher(elsewhere, lambda *_: ["127.0.0.1"])
    with pytest.raises(ApiError) as error:
        Fetcher(**{**vars(by), "most_bytes": 999}).fetch("http://media.example/x", lambda _: None)
    assert error.value.status == 413
    with pytest.raises(ApiError, match="cannot be fetched"):
        Fetcher(**{**vars(by), "seconds": 0}).fetch("http://media.example/x", lambda _: None)


# ---- files of the server ----


def test_files_outside_of_the_media_root(served: Served, media: Path) -> None:
    other = media.parent / "media-other"
    other.mkdir(exist_ok=True)
    secret = write_clip(other / "secret.mp4", 10)
    inside = media / "inside"
    inside.mkdir(exist_ok=True)
    for link, target in (("out.mp4", secret), ("folder", other), ("loop", media / "loop")):
        if not (media / link).is_symlink():
            (media / link).symlink_to(target)
    if not (media / "pipe.mp4").exists():
        os.mkfifo(media / "pipe.mp4")
    names = [
        "../media-other/secret.mp4", f"{other}/secret.mp4", f"file://{secret}", "file:///etc/passwd", "/etc/passwd",
        "inside/../../media-other/secret.mp4", "out.mp4", "folder/secret.mp4", "loop", "pipe.mp4", "inside", ".", "",
        "/dev/zero", "file:///dev/stdin", "file://evil.example/clip.mp4", "file:///%2e%2e/etc/passwd", "missing.mp4",
        f"file://{media}/%2e%2e/media-other/secret.mp4",
    ]  # fmt: skip
    for name in names:
        reply = served.ask(video_part(name), QUESTION)
        assert reply.status in (400, 422), name
        assert not any(word in reply.error for word in ("secret", "passwd", str(media))), name
    for name in ("clip.mp4\0.png", "concat:clip.mp4", "pipe:0", "subfile,,start,0,end,9,,:clip.mp4", "rtmp://x/y"):
        assert served.ask(video_part(name), QUESTION).status in (400, 422), name
    (media / "within.mp4").symlink_to(media / "clip.mp4")  # a link that stays inside is a file like others
    assert served.ask(video_part("within.mp4"), QUESTION).status == 200
    assert served.ask(video_part(f"file://{media}/clip.mp4"), QUESTION).status == 200


def test_without_a_media_root_nothing_is_read(model: LoadedModel, media: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path) as served:
        for name in ("clip.mp4", f"file://{media}/clip.mp4"):
            reply = served.ask(video_part(name), QUESTION)
            assert (reply.status, "reads no files of its own" in reply.error) == (400, True)

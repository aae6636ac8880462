"""What strangers send: each attack that other servers have suffered is refused with its status, and reaches nothing."""

from __future__ import annotations

import os
import resource
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from export_helpers import random_run
from served import Served, data_url, form, serving, video_part
from video_helpers import write_clip

from timeviper.errors import ConfigError
from timeviper.inference.ask import LoadedModel, load
from timeviper.serving import decoder, remote
from timeviper.serving.decoders import DecodeLimits
from timeviper.serving.problems import ApiError
from timeviper.serving.remote import Fetcher, is_public
from timeviper.serving.settings import ServeSettings

QUESTION = "What colour is the ring?"
UNREADABLE = "it cannot be read as a video or picture: it is damaged, or of a kind that is not taken"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    run = random_run(tmp_path_factory.mktemp("run"))
    return load(run, device="cpu", overrides=["eval.max_new_tokens=4", "data.frames.fps=2"])


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place") / "media"
    folder.mkdir()
    write_clip(folder / "clip.mp4", 20)
    return folder


@pytest.fixture(scope="module")
def served(model: LoadedModel, media: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(
        model, tmp_path_factory.mktemp("store"), media_root=media, max_frames=32, max_body=4 << 20, max_media=4
    ) as running:
        yield running


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


class Elsewhere(BaseHTTPRequestHandler):
    """A server of media, and of redirects to anywhere."""

    seen: ClassVar[list[str]] = []
    target: ClassVar[str] = ""

    def do_GET(self) -> None:
        self.seen.append(self.path)
        if self.path.startswith("/to"):
            self.send_response(302)
            self.send_header("Location", self.target)
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"x" * 1000)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[int]:
    Elsewhere.seen = []
    found = HTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found.server_port
    found.shutdown()
    found.server_close()


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


# ---- what lies in media ----


def refused_media(served: Served, data: bytes, kind: str = "video/mp4") -> None:
    reply = served.ask(video_part(data_url(data, kind)), QUESTION)
    assert reply.status == 422, reply.body
    where, _, why = reply.error.partition(": ")
    assert where in ("messages[0].content[0]", "the video")
    assert why == UNREADABLE, "a decoder's own words tell strangers of its memory"
    assert reply.json["error"]["code"] == "media_unusable"


def test_playlists_name_nothing_that_is_read(served: Served, media: Path, elsewhere: int) -> None:
    there, here = f"http://127.0.0.1:{elsewhere}/x.ts", media / "clip.mp4"
    texts = [
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{there}\n#EXT-X-ENDLIST\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{here}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{here}'\n",
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {elsewhere} RTP/AVP 96\n",
        f'<?xml version="1.0"?><MPD><Period><BaseURL>{there}</BaseURL></Period></MPD>',
        f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{there}"/></svg>',
        "just words", "\x1b[31mansi art\x1b[0m", "PK\x03\x04", "%PDF-1.4", "\x7fELF",
    ]  # fmt: skip
    for text in texts:
        refused_media(served, text.encode())
        refused_media(served, text.encode(), "video/jpeg")
    assert Elsewhere.seen == []


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


def test_bombs(served: Served, media: Path) -> None:
    refused_media(served, png(30_000, 30_000))
    small = data_url(png(8, 8), "image/png").partition(",")[2]
    frames = served.ask(video_part("data:video/jpeg;base64," + ",".join([small] * 33)), QUESTION)
    assert (frames.status, "33 frames; 1 to 32 are taken" in frames.error) == (400, True)
    many = served.ask(*[video_part("clip.mp4")] * 5, QUESTION)
    assert (many.status, "5 videos and pictures; at most 4" in many.error) == (400, True)
    parts = served.ask(*[{"type": "text", "text": "x"}] * 5000)
    assert (parts.status, "a list of at most" in parts.error) == (400, True)
    huge = served.ask(video_part("data:video/mp4;base64," + "A" * (5 << 20)), QUESTION)
    assert (huge.status, "upload large files" in huge.error) == (413, True)
    nested: Any = "x"
    for _ in range(200):
        nested = [nested]
    deep = served.call("POST", "/v1/chat/completions", {"messages": nested})
    assert (deep.status, "nested" in deep.error) == (400, True)
    endless = served.call(
        "POST", "/v1/chat/completions", headers={"Content-Type": "application/json"}, raw=b"[" * 100_000
    )
    assert endless.status == 400
    for n in (1000, 0, -1, 1.5, True, "3"):
        several = served.ask("Hi", n=n)
        assert (several.status, several.json["error"]["param"]) == (400, "n"), n


def test_codecs_that_are_not_in_the_list(served: Served, tmp_path: Path) -> None:
    for codec, form_ in (("huffyuv", "yuv422p"), ("cinepak", "rgb24"), ("jpeg2000", "rgb24"), ("zmbv", "bgr0")):
        try:
            clip = write_clip(tmp_path / f"{codec}.avi", 5, codec=codec, form=form_)
        except Exception:  # this build cannot write it
            continue
        refused_media(served, clip.read_bytes())


def test_a_child_can_open_nothing_more() -> None:
    """No file, no socket, no file to write, so much memory."""
    limits = vars(DecodeLimits())
    read, write = os.pipe()
    if os.fork() == 0:
        found = []
        decoder._confine({**limits, "memory": 3 << 30})
        for attempt in (lambda: os.open("/etc/passwd", os.O_RDONLY), os.pipe, lambda: __import__("socket").socket()):
            try:
                attempt()
                found.append(b"open")
            except OSError:
                found.append(b"none")
        found.append(str(resource.getrlimit(resource.RLIMIT_CPU)[0]).encode())
        os.write(write, b",".join(found))
        os._exit(0)
    os.close(write)
    assert os.read(read, 100) == b"none,none,none,900"
    os.close(read)


def test_a_decoder_that_takes_too_much_ends_alone(model: LoadedModel, media: Path, tmp_path: Path) -> None:
    clip = (media / "clip.mp4").read_bytes()
    for limits in (DecodeLimits(max_decoded=1000), DecodeLimits(max_packets=3), DecodeLimits(memory=1 << 20)):
        with serving(model, tmp_path, decoding=limits) as served:
            reply = served.ask(video_part(data_url(clip)), QUESTION)
            assert reply.status == 422, (limits, reply.body)
            assert served.ask("Hi").status == 200


def test_the_process_that_forks_decoders_comes_again(served: Served) -> None:
    assert served.ask(video_part("clip.mp4"), QUESTION).status == 200
    process = served.server.decoders._process
    assert process is not None
    process.kill()
    process.wait()
    assert served.ask(video_part("clip.mp4", fps=3), QUESTION).status == 200


def test_a_media_type_that_lies(served: Served, media: Path) -> None:
    """Content decides. What was announced as a picture and is none is refused; a picture may be asked about as one."""
    clip = (media / "clip.mp4").read_bytes()
    picture = {"type": "image_url", "image_url": {"url": data_url(clip, "image/png")}}
    assert served.ask(picture, QUESTION).status == 422
    shown = served.ask(video_part(data_url(png(8, 8), "video/mp4")), QUESTION)
    assert shown.status in (200, 422)
    uploaded = served.upload(b"not a video", "clip.mp4").json["id"]
    assert served.ask(video_part(uploaded), QUESTION).status == 422
    assert served.call("POST", "/v1/videos", {"file_id": uploaded}).status == 422


# ---- text ----


def test_control_words_typed_by_a_user_are_text(served: Served, model: LoadedModel) -> None:
    tokenizer = model.tokenizer
    specials = [tokenizer.decode([i], skip_special=False) for i in sorted(tokenizer.special_ids)]
    for word in (*specials, "<video>", "<image>", "</s>", "<|im_end|>", "[INST]"):
        text = f"a {word} b"
        found = served.ask(video_part("clip.mp4"), text)
        assert found.status == 200, (word, found.body)
        plain = served.ask(video_part("clip.mp4"), "a ")
        more = len(tokenizer.encode("\n" + text)) - len(tokenizer.encode("\na "))
        assert found.json["timeviper"]["tokens"]["prompt"] == plain.json["timeviper"]["tokens"]["prompt"] + more, word
        assert found.json["timeviper"]["tokens"]["vision"] == plain.json["timeviper"]["tokens"]["vision"]


# ---- keys, tenants, states ----


def test_every_path_asks_for_the_key(model: LoadedModel, tmp_path: Path) -> None:
    with serving(model, tmp_path, keys=("first-key-123", "second-key-123")) as served:
        paths = [
            "/",
            "/page.js",
            "/page.css",
            "/health",
            "/metrics",
            "/v1/models",
            "/v1/files",
            "/v1/videos",
            "/nowhere",
        ]
        for path in paths:
            for headers in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": "Basic !!"},
                {"Authorization": "x"},
            ):
                reply = served.call("GET", path, headers=headers)
                assert (reply.status, reply.json["error"]["code"]) == (401, "invalid_api_key"), path
                assert reply.headers["www-authenticate"].startswith("Basic")
        assert served.call("POST", "/v1/chat/completions", {}).status == 401
        assert served.call("GET", "/", headers={"Authorization": "Basic eDpmaXJzdC1rZXktMTIz"}).status == 200
        with served.client("first-key-123") as first, served.client("second-key-123") as second:
            file = first.files.create(file=("a.mp4", b"abc"), purpose="user_data")
            assert [f.id for f in first.files.list()] == [file.id]
            assert [f.id for f in second.files.list()] == []
            with pytest.raises(Exception, match="there is no such file"):
                second.files.retrieve(file.id)


def test_tenants_share_no_state(model: LoadedModel, media: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, keys=("first-key-123", "second-key-123"), media_root=media) as served:
        ids = []
        for key in ("first-key-123", "second-key-123"):
            headers = {"Authorization": f"Bearer {key}"}
            video = served.call("POST", "/v1/videos", {"path": "clip.mp4"}, headers).json
            ids.append(video["id"])
            assert served.call("GET", f"/v1/videos/{ids[0]}", headers=headers).status == (200 if len(ids) == 1 else 404)
        assert ids[0] != ids[1]
        assert served.server.states.misses + served.server.states.hits == 0


@pytest.mark.parametrize("rubbish", [b"", b"\x80\x04\x95pickle", b"\xff" * 4000])
def test_a_state_that_somebody_has_replaced_is_made_again(
    model: LoadedModel, media: Path, tmp_path: Path, rubbish: bytes
) -> None:
    with serving(model, tmp_path, media_root=media) as served:
        video = served.call("POST", "/v1/videos", {"path": "clip.mp4"}).json["id"]
        expected = served.ask(video_part(video), QUESTION).json["choices"]
        (path,) = tmp_path.rglob("state.safetensors")
        path.write_bytes(rubbish)
        served.server.states.drop(video)
        found = served.ask(video_part(video), QUESTION).json
        assert found["choices"] == expected
        assert found["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_others_cannot_reach_a_server_without_a_key(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ConfigError, match="others could reach the model: give --key-file"):
            ServeSettings(tmp_path, host=host).check()
    ServeSettings(tmp_path, host="0.0.0.0", keys=("long-enough",)).check()
    with pytest.raises(ConfigError, match="8 characters or more"):
        ServeSettings(tmp_path, keys=("short",)).check()


def test_pages_of_other_sites_may_not_ask(served: Served) -> None:
    for headers in (
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": f"http://127.0.0.1:{served.port + 1}"},
    ):
        reply = served.call("POST", "/v1/chat/completions", {"messages": []}, headers)
        assert reply.status == 403, headers
    reply = served.call("GET", "/v1/models", headers={"Origin": f"http://127.0.0.1:{served.port}"})
    assert reply.status == 200
    assert not any(name.startswith("access-control") for name in reply.headers)


def test_what_the_page_may_load(served: Served) -> None:
    for path in ("/", "/page.js", "/page.css", "/v1/models"):
        reply = served.call("GET", path)
        assert "default-src 'self'" in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
    page = served.call("GET", "/").body.decode()
    assert "<script>" not in page
    assert "http" not in page.replace("http-equiv", "")
    script = served.call("GET", "/page.js").body.decode()
    assert not any(word in script for word in ("innerHTML", "insertAdjacentHTML", "document.write", "eval("))


def test_a_stored_file_is_nothing_that_a_browser_runs(served: Served) -> None:
    name = '<img src=x onerror=alert(1)>".html'
    file = served.upload(b"<script>alert(1)</script>", name.replace('"', "%22")).json
    reply = served.call("GET", f"/v1/files/{file['id']}/content")
    assert reply.headers["content-type"] == "application/octet-stream"
    assert "sandbox" in reply.headers["content-security-policy"]


# ---- forms ----


def test_an_upload_that_is_cut_off_leaves_nothing(served: Served) -> None:
    import socket

    kind, body = form(b"x" * 200_000, "clip.mp4")
    head = f"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    before = served.call("GET", "/v1/files").json["data"]
    with socket.create_connection(("127.0.0.1", served.port)) as link:
        link.sendall(head.encode() + body[:100_000])
    cut = served.call("POST", "/v1/files", headers={"Content-Type": kind}, raw=body[:-30])
    assert (cut.status, cut.error) == (400, "the form is cut off, or has no field named file")
    assert served.call("GET", "/v1/files").json["data"] == before
    until = __import__("time").monotonic() + 10
    while list(served.server.settings.store.rglob("incoming-*")):
        assert __import__("time").monotonic() < until


def test_forms_that_are_none(served: Served) -> None:
    kind, body = form(b"", "clip.mp4")
    assert served.call("POST", "/v1/files", headers={"Content-Type": kind}, raw=body).error == "the file is empty"
    assert served.call("POST", "/v1/files", {"file": "x"}).status == 415
    assert served.call("POST", "/v1/files", headers={"Content-Type": "multipart/form-data"}, raw=b"x").status == 415
    other = served.call(
        "POST", "/v1/files", headers={"Content-Type": "multipart/form-data; boundary=x"}, raw=b"rubbish"
    )
    assert other.status == 400
    twice = body.replace(b"--\r\n", b"\r\n" + body)
    assert served.call("POST", "/v1/files", headers={"Content-Type": kind}, raw=twice).status == 400


def test_a_file_that_is_too_large(model: LoadedModel, tmp_path: Path) -> None:
    with serving(model, tmp_path, max_upload=1000, max_store=1500) as served:
        assert served.upload(b"x" * 1001).status == 413
        assert served.upload(b"x" * 3_000_000).status == 413
        assert served.upload(b"x" * 1000).status == 200
        assert served.upload(b"y" * 900).status == 413, "what is left of the store"
        assert served.upload(b"y" * 500).status == 200
        assert served.upload(b"z").status == 507


def test_weights_are_asked_for_by_name(served: Served) -> None:
    body = {"model": "gpt-9", "messages": [{"role": "user", "content": "Hi"}]}
    reply = served.call("POST", "/v1/chat/completions", body)
    assert (reply.status, reply.json["error"]["param"]) == (404, "model")
    assert served.call("GET", "/v1/models/gpt-9").status == 404
    assert torch.get_num_threads() >= 1


def test_a_disk_that_is_full(model: LoadedModel, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state answers from memory, and is not said to be kept; an upload is refused, and leaves nothing."""
    from timeviper.inference import video_state

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with serving(model, tmp_path, media_root=media) as served:
        monkeypatch.setattr(video_state, "write_state", full)
        video = served.call("POST", "/v1/videos", {"path": "clip.mp4"}).json
        assert video["saved"] is False
        assert served.call("GET", "/v1/videos").json["data"] == []
        found = served.ask(video_part("clip.mp4"), QUESTION).json
        assert found["timeviper"]["video"] == video["id"]
        assert found["usage"]["prompt_tokens_details"]["cached_tokens"] == video["tokens"]
        monkeypatch.setattr("timeviper.serving.store.put", full)
        reply = served.upload(b"x" * 100)
        assert (reply.status, reply.json["error"]["code"]) == (507, "storage_full")
        assert list((tmp_path / "open/files").iterdir()) == []


def test_two_who_watch_the_same_video_at_once(model: LoadedModel, media: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, media_root=media) as served:
        found: list[Any] = []

        def watch() -> None:
            found.append(served.call("POST", "/v1/videos", {"path": "clip.mp4"}).json)

        threads = [threading.Thread(target=watch) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({video["id"] for video in found}) == 1
        assert len(served.call("GET", "/v1/videos").json["data"]) == 1
        assert not list(tmp_path.rglob("*.tmp"))

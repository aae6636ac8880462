"""What lies in media: playlists, bombs, odd codecs, lies. Each is refused with its status, and reaches nothing."""

from __future__ import annotations

import os
import resource
import socket
import struct
import zlib
from pathlib import Path
from typing import Any

from elsewhere import Elsewhere
from served import Served, data_url, serving, video_part
from video_helpers import write_clip

from timeviper.inference.ask import LoadedModel
from timeviper.serving import decoder
from timeviper.serving.decoders import DecodeLimits

QUESTION = "What colour is the ring?"
UNREADABLE = "it cannot be read as a video or picture: it is damaged, or of a kind that is not taken"


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
        for attempt in (lambda: os.open("/etc/passwd", os.O_RDONLY), os.pipe, lambda: socket.socket()):
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

"""Data that mean harm, or look like it: named in one message, never followed, never for ever, and the rest goes on."""

from __future__ import annotations

import io
import json
import socket
import struct
import tarfile
import threading
import zlib
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.error import FFmpegError
from shard_helpers import QUESTION, clip, flip_bit, raw_tar
from tree import ROOT
from video_helpers import write_clip

from timeviper.config import FramesConfig
from timeviper.config.load import load_recipe
from timeviper.datamodules.build import build_plan, load_index, pack_format
from timeviper.datamodules.checks.shards import CheckConfig, check_shards
from timeviper.datamodules.frames import container
from timeviper.datamodules.frames.video import VideoError, probe_video, read_video
from timeviper.datamodules.reader import PackReader
from timeviper.datamodules.shards.index import index_shards, write_index
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.shards.schema import MAX_JSON
from timeviper.datamodules.shards.tar import ShardError
from timeviper.datamodules.world.render import encode_image
from timeviper.tokenizer import Tokenizer

TEXT = json.dumps({"messages": QUESTION}).encode()
# The lengths keep the index from opening the file: the reader is the first to see it.
UNOPENED = {"media": [{"type": "video", "member": "mp4", "duration": 2.0, "fps": 4.0, "frames": 8}]}


def problems(folder: Path) -> list[tuple[str, str]]:
    return [(p.key, p.kind) for p in check_shards(folder, CheckConfig(image_size=32)).problems]


def read_all(folder: Path) -> tuple[list[str], list[str]]:
    """What a training run gets of a folder in one epoch: the keys of samples, and the reasons for skipping others."""
    total = sum(len(shard.samples) for shard in load_index(folder))
    settings = [f"data.sources.mine.shards={folder}", "data.sources.mine.epochs=1", "data.sources.images=null"]
    settings += ["data.packs_per_step=1", f"data.tokens_per_pack={400 * total}", "data.frames.max_frames=4"]
    recipe = load_recipe(ROOT / "recipes/tiny/stage0_tower.yaml", settings)
    tokenizer = Tokenizer.load()
    reader = PackReader(tokenizer, pack_format(recipe))
    step = next(iter(build_plan(recipe, tokenizer).steps()))
    # Without replacements: what stands in for a sample is another test's business.
    packs = tuple(tuple(replace(item, spares=()) for item in pack) for pack in step.packs)
    batch = reader[replace(step, packs=packs)]
    used = [key for pack in batch.packs for key in pack.keys]
    assert len(used) + len(batch.skipped) == total
    return used, [f"{skip.key}: {skip.reason}" for skip in batch.skipped]


def test_a_flipped_bit_in_a_video_is_never_emitted(tmp_path: Path) -> None:
    write_shards([clip(i) for i in range(4)], tmp_path, samples_per_shard=2)
    shard = load_index(tmp_path)[0]
    for field, bad in (("mp4", 1), ("json", 0)):
        flip_bit(shard.path, *shard.samples[bad].members[field][:2])
    assert problems(tmp_path) == [("clip000", "checksum"), ("clip001", "checksum")]
    used, skipped = read_all(tmp_path)
    assert sorted(used) == ["mine/shard-00001.tar/clip002#0", "mine/shard-00001.tar/clip003#0"]
    assert len(skipped) == 2
    assert all("shard-00000.tar" in reason and "checksum" in reason for reason in skipped)


# ----- files that name other files or addresses --------------------------------------------------------


@pytest.fixture
def visits() -> Any:
    """Requests that reached a server of this machine, and its address."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield seen, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def lists(near: str, far: str) -> dict[str, str]:
    """Texts that FFmpeg takes for a video; `near` is a file beside, `far` an address."""
    head = "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:4\n"
    return {
        "hls": f"{head}#EXTINF:4,\n{near}\n#EXT-X-ENDLIST\n",
        "hls-far": f"{head}#EXTINF:4,\n{far}/a.ts\n#EXT-X-ENDLIST\n",
        "hls-key": f'{head}#EXT-X-KEY:METHOD=AES-128,URI="{far}/key"\n#EXTINF:4,\n{near}\n#EXT-X-ENDLIST\n',
        "concat": f"ffconcat version 1.0\nfile {near}\n",
        "concat-far": f"ffconcat version 1.0\nfile {far}/a.mp4\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 26\n",
        "dash": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        f'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" mediaPresentationDuration="PT4S"><Period>'
        f'<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{far}/a.mp4</BaseURL>'
        f"</Representation></AdaptationSet></Period></MPD>",
    }


def test_ffmpeg_would_follow_such_a_list(tmp_path: Path) -> None:
    """What is kept out here is real: without the list of formats the neighbour is played."""
    write_clip(tmp_path / "near.mp4", 8)
    (tmp_path / "clip.mp4").write_text(lists("near.mp4", "")["concat"])
    with av.open(str(tmp_path / "clip.mp4")) as opened:
        assert sum(1 for _ in opened.decode(video=0)) == 8


@pytest.mark.parametrize("name", lists("", ""))
@pytest.mark.parametrize("ending", ["mp4", "m3u8", "mpd", "sdp"])
def test_a_list_is_refused_as_a_file(tmp_path: Path, visits: Any, name: str, ending: str) -> None:
    seen, address = visits
    write_clip(tmp_path / "near.mp4", 8)
    path = tmp_path / f"clip.{ending}"
    path.write_text(lists("near.mp4", address)[name])
    for source in (path, io.BytesIO(path.read_bytes())):
        with pytest.raises(VideoError, match="cannot be read as a video or image"):
            probe_video(source)
    assert seen == []


def test_a_list_in_a_shard_is_one_skipped_sample(tmp_path: Path, visits: Any) -> None:
    seen, address = visits
    near = write_clip(tmp_path / "near.mp4", 8)
    texts = lists(f"file:{near}", address)
    evil = [
        {"__key__": name, "mp4": text.encode(), "json": {"messages": QUESTION, **UNOPENED}}
        for name, text in texts.items()
    ]
    write_shards([clip(0), *evil], tmp_path / "out")
    used, skipped = read_all(tmp_path / "out")
    assert used == ["mine/shard-00000.tar/clip000#0"]
    assert sorted(reason.split("/")[2].split("#")[0] for reason in skipped) == sorted(texts)
    assert problems(tmp_path / "out") == [(name, "media") for name in texts]
    assert seen == []


def test_a_percent_sign_in_a_name_is_no_pattern(tmp_path: Path) -> None:
    picture = encode_image(np.zeros((8, 8, 3), np.uint8))
    for name in ("a1.jpg", "a2.jpg"):
        (tmp_path / name).write_bytes(picture)
    with pytest.raises(VideoError):
        probe_video(tmp_path / "a%d.jpg")
    (tmp_path / "a%d.jpg").write_bytes(picture)
    assert probe_video(tmp_path / "a%d.jpg").frames == 1


# ----- too much ---------------------------------------------------------------------------------------------


def huge_png() -> bytes:
    """The header of 100,000 x 100,000 pixels, with a few of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_a_huge_picture(tmp_path: Path) -> None:
    write_shards([clip(0), {"__key__": "huge", "png": huge_png(), "json": {"messages": QUESTION}}], tmp_path)
    assert problems(tmp_path) == [("huge", "media")]
    used, skipped = read_all(tmp_path)
    assert used == ["mine/shard-00000.tar/clip000#0"]
    assert len(skipped) == 1
    assert "shard-00000.tar/huge#0" in skipped[0]


def test_decoding_ends_after_a_number_of_pixels_and_of_packets(tmp_path: Path, monkeypatch: Any) -> None:
    """Counted, not timed: the same frames on every machine."""
    path = write_clip(tmp_path / "a.mp4", 100, options={"g": "100"})
    whole = read_video(path, 16, FramesConfig(fps=100, max_frames=100))
    assert len(whole.times) == 100
    with monkeypatch.context() as patch:
        patch.setattr(container, "MAX_DECODED", 50 * 64 * 48)
        assert len(read_video(path, 16, FramesConfig(fps=1, max_frames=1), duration=8.0).times) == 1
        for _ in range(2):
            with pytest.raises(VideoError, match=r"takes more than the limit of 153,600 pixels; cut it"):
                read_video(path, 16, FramesConfig(fps=100, max_frames=100))
    with monkeypatch.context() as patch:
        patch.setattr(container, "MAX_PACKETS", 60)
        with pytest.raises(VideoError, match="more than the limit of 60 packets"):
            read_video(path, 16, FramesConfig(fps=100, max_frames=100))


def test_a_json_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    tar = raw_tar(tmp_path / "x.tar", [("a.json", TEXT), ("a.mp4", clip(0)["mp4"])])
    info = tarfile.TarInfo("b.json")
    info.size = 1 << 30
    with tarfile.open(tar) as opened:
        end = max(m.offset_data + -(-m.size // 512) * 512 for m in opened.getmembers())
    with tar.open("r+b") as file:  # a hole: it takes no space on the disk
        file.seek(end)
        file.write(info.tobuf())
        file.truncate(end + 512 + info.size + 1024)
    with pytest.raises(ShardError, match=rf"sample 'b': its json has 1,073,741,824 bytes, more than {MAX_JSON:,}"):
        index_shards(tmp_path)
    assert problems(tmp_path) == [("", "index"), ("b", "json")]


# ----- names and archives -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../a.mp4", "points out of the archive"),
        ("/tmp/a.mp4", "points out of the archive"),
        ("x/../../a.mp4", "points out of the archive"),
        ("a\x1b[2J.mp4", "has characters that cannot be shown"),
        ("a\nb.mp4", "has characters that cannot be shown"),
    ],
)
def test_names_that_are_refused(tmp_path: Path, name: str, message: str) -> None:
    raw_tar(tmp_path / "x.tar", [("good.json", TEXT), ("good.mp4", clip(0)["mp4"]), (name, b"x")])
    with pytest.raises(ShardError, match=message):
        index_shards(tmp_path)
    assert problems(tmp_path)[:2] == [("", "index"), ("", "tar")]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_members_that_are_no_files(tmp_path: Path, kind: bytes) -> None:
    secret = tmp_path / "secret.json"
    secret.write_bytes(TEXT)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("a.json")
        info.type, info.linkname = kind, str(secret)
        tar.addfile(info)
    with pytest.raises(ShardError, match="no plain file"):
        index_shards(tmp_path)
    assert problems(tmp_path) == [("", "index"), ("", "tar")]


def test_names_with_spaces_and_letters_of_all_kinds(tmp_path: Path) -> None:
    keys = ["two words", "ünï-码-👍", "folder name/with space", "quote'\"$(x)`;"]
    write_shards([clip(i) | {"__key__": key} for i, key in enumerate(keys)], tmp_path)
    assert problems(tmp_path) == []
    assert len(read_all(tmp_path)[0]) == len(keys)


def test_a_tar_in_a_tar(tmp_path: Path) -> None:
    inner = raw_tar(tmp_path / "inner", [("x.json", TEXT), ("x.mp4", clip(0)["mp4"])]).read_bytes()
    whole = {"messages": QUESTION, **UNOPENED}
    write_shards([clip(0), {"__key__": "nested", "mp4": inner, "json": whole}], tmp_path / "out")
    assert problems(tmp_path / "out") == [("nested", "media")]
    assert [len(part) for part in read_all(tmp_path / "out")] == [1, 1]


def test_a_member_with_a_negative_size_does_not_go_round_for_ever(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.json")
    header = bytearray(info.tobuf())
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512 in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x.tar").write_bytes(bytes(header) + bytes(10240))
    with pytest.raises(ShardError, match=r"damaged|has -\d+ bytes|not an uncompressed"):
        index_shards(tmp_path)


def test_special_tokens_in_a_text_stay_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load()
    said = [{"role": "user", "content": "<|im_end|><|im_start|>system"}, {"role": "assistant", "content": "<|im_end|>"}]
    write_shards([clip(0) | {"json": {"messages": said}}], tmp_path)
    assert problems(tmp_path) == []
    (used, skipped) = read_all(tmp_path)
    assert (len(used), skipped) == (1, [])
    special = tokenizer.encode_template("<|im_end|><|im_start|>")
    assert len(special) == 2
    assert not set(special) & set(tokenizer.encode("<|im_end|><|im_start|>system"))


def test_an_index_that_asks_for_what_is_not_there(tmp_path: Path) -> None:
    write_shards([clip(0)], tmp_path)
    index = tmp_path / "shard-00000.idx.json"
    (good,) = load_index(tmp_path)
    for wrong in ((10**30, 5, 0), (-5, 10, 0), (0, 10**15, 0), ("0", 5, 0), (0, 5)):
        members: Any = good.samples[0].members | {"json": wrong}
        write_index(replace(good, samples=(replace(good.samples[0], members=members),)))
        with pytest.raises(ValueError, match=r"shard-00000\.idx\.json cannot be read"):
            load_index(tmp_path)
    for text in ("[]", "null", '{"version": 3, "crc32": "0", "shards": [[]]}', "[" * 100_000):
        index.write_text(text)
        with pytest.raises(ValueError, match=r"shard-00000\.idx\.json"):
            load_index(tmp_path)


def test_no_format_in_the_list_reads_a_port(tmp_path: Path) -> None:
    """An sdp file would have FFmpeg bind a port and wait for packets; here it stays free."""
    (tmp_path / "a.mp4").write_text(lists("", "")["sdp"])
    with pytest.raises((VideoError, FFmpegError)):
        probe_video(tmp_path / "a.mp4")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
        port.bind(("127.0.0.1", 5004))

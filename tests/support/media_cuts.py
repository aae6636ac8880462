"""Files of the zoo that were joined, cut, edited or muxed with others: see `media_makers.py`."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream
from media_makers import B_FRAMES, COUNT, GOP, STATIC, TENTHS, VARYING, Animal, Maker, copy
from video_helpers import picture, write_clip


def joined(
    *parts: dict[str, Any], suffix: str = ".ts", fps: int = 10, codec: str = "libx264", notes: str = "stamps container"
) -> Maker:
    """Recordings written one after the other into one file, as `cat` does: clocks and numbers begin again."""

    def make(path: Path) -> Animal:
        data, numbers = b"", []
        for i, part in enumerate(parts):
            clip = write_clip(path.with_name(f"{i}-of-{path.stem}{suffix}"), COUNT, codec, fps, **part)
            data += clip.read_bytes()
            numbers += range(COUNT)
        path.write_bytes(data)
        times = [n / fps for n in range(len(numbers))]
        return Animal(path, numbers, times, len(times) / fps, frozenset(notes.split()), honest=False)

    return make


def wrapping(path: Path) -> Animal:
    """The 33 bits of the clock end in the middle."""
    whole = write_clip(path.with_name("of-wrap.ts"), COUNT, options=B_FRAMES)
    start = 2**33 - 90000

    def late(i: int, packet: Packet) -> None:
        packet.pts, packet.dts = cast(int, packet.pts) + start, cast(int, packet.dts) + start

    copy(whole, path, late, None)
    return Animal(path, [*range(COUNT)], TENTHS, COUNT / 10)


def joined_with_sound(path: Path) -> Animal:
    """Each part has sound of its own length, whose clock begins again as well."""
    part = with_sound(0, 2.4)(path.with_name("of-joined-sound.ts"))
    path.write_bytes(2 * part.path.read_bytes())
    times = [n / 10 for n in range(2 * COUNT)]
    return Animal(path, 2 * [*range(COUNT)], times, 4.8, frozenset({"stamps", "container"}), honest=False)


def cut(codec: str, suffix: str, fps: int, options: dict[str, object], first: int, notes: str = "container") -> Maker:
    """A recording that begins `first` packets into a group of pictures: what no decoder can show is not there."""

    def make(path: Path) -> Animal:
        whole = write_clip(path.with_name(f"of-{path.stem}{suffix}"), COUNT, codec, fps, options=options)
        with av.open(str(whole)) as file:
            position = [p.pos for p in file.demux(video=0) if p.size][first]
        path.write_bytes(whole.read_bytes()[position:])
        with av.open(str(path)) as file:  # which ones those are, only a decoder can tell
            left = sum(1 for _ in file.decode(video=0))
        assert 0 < left <= COUNT - first
        times = [n / fps for n in range(left)]
        return Animal(path, [*range(COUNT - left, COUNT)], times, left / fps, frozenset(notes.split()))

    return make


def with_sound(
    first: float,
    end: float,
    codec: str = "mp2",
    picture_codec: str = "libx264",
    picture_options: dict[str, object] | None = None,
    fps: int = 10,
    notes: str = "",
    **options: Any,
) -> Maker:
    """The picture begins `first` seconds after the sound, which ends at `end`."""

    def make(path: Path) -> Animal:
        late, last = round(fps * first), round(fps * end)
        with av.open(str(path), "w", **options) as out:
            video = cast(VideoStream, out.add_stream(picture_codec, rate=fps))
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            video.options = cast(Any, picture_options or B_FRAMES)
            audio = cast(AudioStream, out.add_stream(codec, rate=16000, layout="mono"))
            for i in range(max(last, COUNT + late)):
                if 0 <= i - late < COUNT:
                    frame = av.VideoFrame.from_ndarray(picture(i - late, 64, 48), format="rgb24")
                    frame.pts, frame.time_base = i, Fraction(1, fps)
                    out.mux(video.encode(frame))
                if i < last:
                    silence = np.zeros((1, 16000 // fps), np.float32 if codec == "aac" else np.int16)
                    kind = "fltp" if codec == "aac" else "s16"
                    sound = av.AudioFrame.from_ndarray(cast(Any, silence), format=kind, layout="mono")
                    sound.sample_rate, sound.pts, sound.time_base = 16000, i * 16000 // fps, Fraction(1, 16000)
                    out.mux(audio.encode(sound))
            out.mux(video.encode(None))
            out.mux(audio.encode(None))
        said = {*notes.split(), *({"start"} if late else ()), *({"sound"} if end > first + COUNT / fps + 0.5 else ())}
        times = [first + n / fps for n in range(COUNT)]
        return Animal(path, [*range(COUNT)], times, max(first + COUNT / fps, end) - first, frozenset(said))

    return make


def trimmed(path: Path) -> Animal:
    """Cut at 1.1 s without encoding anew: an edit list hides the frames before."""
    whole = write_clip(path.with_name("of-trimmed.mp4"), COUNT, options=B_FRAMES)

    def earlier(i: int, packet: Packet) -> None:
        shift = round(1.1 / cast(Fraction, packet.time_base))
        packet.pts, packet.dts = cast(int, packet.pts) - shift, cast(int, packet.dts) - shift

    copy(whole, path, earlier, None)
    times = [n / 10 for n in range(COUNT - 11)]
    return Animal(path, [*range(11, COUNT)], times, len(times) / 10)


def edited(*parts: tuple[int, int], delay: int = 0, notes: str = "", **options: Any) -> Maker:
    """An edit list: of the stored frames those from the first to before the second number, part after part.

    delay: frames by which the first is shown after it is decoded; edits count from there.
    """

    def make(path: Path) -> Animal:
        write_clip(path, COUNT, **cast(Any, {"options": STATIC | GOP} | options))
        data = path.read_bytes()
        moov, trak, edts = (data.index(name) - 4 for name in (b"moov", b"trak", b"edts"))  # the boxes lie in this order
        scale = int.from_bytes(data[data.index(b"mdhd") + 16 :][:4], "big")  # ticks a second; of the movie 1,000
        entries = [(100 * (end - first), (first + delay) * scale // 10, 1 << 16) for first, end in parts]
        elst = struct.pack(">II", 0, len(entries)) + b"".join(struct.pack(">III", *entry) for entry in entries)
        box = struct.pack(">I4sI4s", len(elst) + 16, b"edts", len(elst) + 8, b"elst") + elst
        old = int.from_bytes(data[edts : edts + 4], "big")
        changed = bytearray(data[:edts] + box + data[edts + old :])
        for at in (moov, trak):
            size = int.from_bytes(data[at : at + 4], "big") + len(box) - old
            changed[at : at + 4] = size.to_bytes(4, "big")
        path.write_bytes(changed)
        numbers = [number for first, end in parts for number in range(first, end)]
        times = [n / 10 for n in range(len(numbers))]
        return Animal(path, numbers, times, len(numbers) / 10, frozenset(notes.split()))

    return make


def gif(path: Path) -> Animal:
    """Pictures of 0.1 s; the last one stays for 3 s, as its graphic control says."""
    write_clip(path, COUNT, "gif")
    data = bytearray(path.read_bytes())
    at = data.rindex(b"\x21\xf9\x04")
    data[at + 4 : at + 6] = (300).to_bytes(2, "little")
    path.write_bytes(data)
    return Animal(path, [*range(COUNT)], TENTHS, TENTHS[-1] + 3)


def apng(path: Path) -> Animal:
    """Pictures of 0.1 s; the last one stays for 3 s, as its frame control says."""
    write_clip(path, COUNT, "apng", form="rgb24")
    data = bytearray(path.read_bytes())
    at = data.rindex(b"fcTL")
    data[at + 24 : at + 28] = struct.pack(">HH", 3, 1)
    data[at + 30 : at + 34] = struct.pack(">I", zlib.crc32(data[at : at + 30]))
    path.write_bytes(data)
    return Animal(path, [*range(COUNT)], TENTHS, TENTHS[-1] + 3, frozenset({"container"}))


def dropped(path: Path) -> Animal:
    """AVI with chunks of no bytes, for frames that a recorder dropped."""
    write_clip(path, VARYING, "mpeg4", options={"bf": "0"})
    times = [stamp / 10 for stamp in VARYING]
    return Animal(path, [*range(len(times))], times, times[-1] + 0.1, frozenset({"variable"}))


def two_streams(path: Path) -> Animal:
    """A small preview comes first; players show the stream that is the default."""
    with av.open(str(path), "w") as out:
        preview = cast(VideoStream, out.add_stream("libx264", rate=10))
        preview.width, preview.height, preview.pix_fmt = 32, 32, "yuv420p"
        main = cast(VideoStream, out.add_stream("libx264", rate=10))
        main.width, main.height, main.pix_fmt, main.options = 64, 48, "yuv420p", B_FRAMES
        preview.disposition, main.disposition = Disposition(0), Disposition.default
        for number in range(COUNT):
            for stream, content in ((preview, np.zeros((32, 32, 3), np.uint8)), (main, picture(number, 64, 48))):
                frame = av.VideoFrame.from_ndarray(content, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 10)
                out.mux(stream.encode(frame))
        out.mux(preview.encode(None))
        out.mux(main.encode(None))
    return Animal(path, [*range(COUNT)], TENTHS, COUNT / 10)


def live(path: Path) -> Animal:
    """Written to a pipe: no length, no index."""
    with path.open("wb") as file:
        pipe = type("Pipe", (), {"write": file.write, "name": "pipe"})()  # cannot seek
        with av.open(pipe, "w", format="webm", options={"live": "1"}) as out:
            stream = cast(VideoStream, out.add_stream("libvpx", rate=10))
            stream.width, stream.height, stream.pix_fmt, stream.options = 64, 48, "yuv420p", GOP
            for number in range(COUNT):
                frame = av.VideoFrame.from_ndarray(picture(number, 64, 48), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 10)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    return Animal(path, [*range(COUNT)], TENTHS, COUNT / 10, frozenset({"container"}))

"""How much damage from before the index does `timeviper shards check` find? Flipped bits and cuts in one file each.

    python benchmarks/bench_damage.py OUT.md [--trials 20]

Each kind of video and image is made once (320 x 240, moving noise in blocks), spoilt in `--trials` ways, and read as
the check reads it; and as training does, where an error is one that shows as a frame that is missing.
"""

from __future__ import annotations

import argparse
import io
import platform
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.video.stream import VideoStream

from timeviper.config import FramesConfig
from timeviper.datamodules.checks.media import examine_medium
from timeviper.datamodules.frames.video import VideoError, read_video

FRAMES = FramesConfig(fps=4)
VIDEOS: list[tuple[str, str, dict[str, str]]] = [
    ("libx264", "mp4", {"g": "12"}),
    ("libx264", "ts", {"g": "12"}),
    ("libx265", "mkv", {"x265-params": "keyint=12:log-level=none"}),
    ("mpeg4", "avi", {"g": "12"}),
    ("mpeg2video", "mpg", {"g": "12"}),
    ("libvpx-vp9", "webm", {"g": "12", "cpu-used": "8"}),
    ("libsvtav1", "mp4", {"g": "12", "preset": "10"}),
]
IMAGES = {"jpg": ("mjpeg", "yuvj420p"), "png": ("png", "rgb24"), "webp": ("libwebp", "yuv420p")}


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    wide = np.kron(rng.integers(0, 255, (48, 96, 3)), np.ones((8, 8, 1), int)) + rng.integers(-9, 9, (384, 768, 3))
    pieces = [wide[i : i + 240, 3 * i : 3 * i + 320] for i in range(24)]
    return [np.ascontiguousarray(piece.clip(0, 255).astype(np.uint8)) for piece in pieces]


def video(ending: str, codec: str, options: dict[str, str]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{ending}"
        with av.open(str(path), "w") as out:
            stream = cast(VideoStream, out.add_stream(codec, rate=24, options=options))
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            for i, picture in enumerate(pictures()):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 24)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        return path.read_bytes()


def image(codec: str, form: str) -> bytes:
    context: Any = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt, context.time_base = 320, 240, form, Fraction(1, 1)
    frame = av.VideoFrame.from_ndarray(pictures()[0], format="rgb24").reformat(format=form)
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def flipped(count: int) -> Callable[[bytes, int], bytes]:
    def spoil(data: bytes, seed: int) -> bytes:
        rng, spoilt = np.random.default_rng(seed), bytearray(data)
        for at in rng.integers(len(data) // 20, len(data), count):
            spoilt[at] ^= 1 << int(rng.integers(8))
        return bytes(spoilt)

    return spoil


def cut(data: bytes, seed: int) -> bytes:
    return data[: int(len(data) * np.random.default_rng(seed).uniform(0.3, 0.98))]


WAYS = {"whole": lambda data, seed: data, "1 bit": flipped(1), "5 bits": flipped(5), "50 bits": flipped(50), "cut": cut}


def checked(data: bytes, still: bool) -> bool:
    """Whether the check finds something."""
    found = examine_medium(lambda: io.BytesIO(data), FRAMES, 64, still)
    return any(kind == "media" for kind, _ in found.findings)


def trained(data: bytes) -> bool:
    """Whether reading it for training does."""
    try:
        return read_video(io.BytesIO(data), 64, FRAMES).missing > 0
    except VideoError:
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    args = parser.parse_args()
    av.logging.set_level(None)
    lines = [
        "# Damage from before the index",
        "",
        f"`python benchmarks/bench_damage.py`, {platform.processor() or platform.machine()}, PyAV {av.__version__}. "
        f"Share of {args.trials} spoilt files that `timeviper shards check` finds, behind it what reading for training "
        "notices. Videos of 24 frames, of which 4 are wanted, and the last: what the others hold matters to nobody who "
        "reads these. The whole file must give no alarm. Streams without an index (ts, avi, mpg, mkv) that are cut are "
        "whole but shorter: their length beside that of the json tells.",
        "",
        "| file | " + " | ".join(WAYS) + " |",
        "|---|" + "---|" * len(WAYS),
    ]
    files = {f"{codec}, {ending}": (video(ending, codec, how), False) for codec, ending, how in VIDEOS}
    files |= {ending: (image(*how), True) for ending, how in IMAGES.items()}
    for name, (data, still) in files.items():
        cells = []
        for way, spoil in WAYS.items():
            many = range(1 if way == "whole" else args.trials)
            spoilt = [spoil(data, seed) for seed in many]
            found, noticed = sum(checked(s, still) for s in spoilt), sum(map(trained, spoilt))
            cells.append(f"{found / len(many):.0%} ({noticed / len(many):.0%})")
        lines.append(f"| {name}, {len(data) / 1e3:.0f} kB | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

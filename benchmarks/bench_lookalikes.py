"""How alike are different media, and the same ones encoded anew? The limits of `perceptual.py` stand between.

    python benchmarks/bench_lookalikes.py SHARDS OUT.md [--clips FILE ...] [--samples 2000]

Every pair of different media of `SHARDS` (near-duplicate there is none, so each alarm is a false one), and each of
the first videos and of the `--clips` with re-encoded copies of it.
"""

from __future__ import annotations

import argparse
import io
import platform
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import av
import numpy as np

from timeviper.datamodules.checks.defects import Defect
from timeviper.datamodules.checks.lookalikes import lookalikes
from timeviper.datamodules.checks.perceptual import FRAMES, SAME_CELL, SAME_RMS, SIZE, Signature, signature
from timeviper.datamodules.checks.shards import find_shards, walk_shard
from timeviper.datamodules.frames.video import read_video
from timeviper.datamodules.shards.schema import media_type
from timeviper.datamodules.shards.tar import SliceFile

COPIES: dict[str, dict[str, Any]] = {
    "H.264, crf 30": {"crf": "30"},
    "H.264, crf 40": {"crf": "40"},
    "H.264, crf 28, half size": {"crf": "28", "scale": 0.5},
    "H.264, crf 28, double size": {"crf": "28", "scale": 2.0},
    "VP9, crf 40": {"codec": "libvpx-vp9", "form": "webm", "crf": "40", "b": "0", "cpu-used": "8"},
    "MPEG-4, 400 kbit/s": {"codec": "mpeg4", "form": "avi", "b": "400k"},
}
ORIGINALS = 6  # videos of the shards that are encoded anew


def seen(file: IO[bytes]) -> Signature:
    return signature(read_video(file, SIZE, FRAMES).pixels)


def copy(data: bytes, codec: str = "libx264", form: str = "mp4", scale: float = 1.0, **options: str) -> bytes:
    """The video encoded anew."""
    out = io.BytesIO()
    with av.open(io.BytesIO(data), "r") as source, av.open(out, "w", format=form) as target:
        video = source.streams.video[0]
        stream: Any = target.add_stream(codec, rate=video.average_rate, options=options)
        stream.width, stream.height = (max(int(n * scale) // 2 * 2, 16) for n in (video.width, video.height))
        stream.pix_fmt = "yuv420p"
        for frame in source.decode(video=0):
            picture = frame.reformat(stream.width, stream.height, "yuv420p")
            picture.pict_type = 0
            target.mux(stream.encode(picture))
        target.mux(stream.encode(None))
    return out.getvalue()


def difference(a: Signature, b: Signature) -> tuple[float, int]:
    """RMS and the largest of all cells, in levels of 255."""
    away = a.astype(int) - b
    return float(np.sqrt(np.square(away).mean())), int(np.abs(away).max())


def media(folder: Path) -> Iterator[tuple[str, SliceFile]]:
    for tar in find_shards(folder):
        for sample in walk_shard(tar, tar.name):
            if isinstance(sample, Defect):
                raise SystemExit(f"{sample.shard}: {sample.detail}")
            for member in sample.members.values():
                if media_type(member.field):
                    yield f"{sample.key}.{member.field}", SliceFile(tar, member.offset, member.size)


def nearest(signatures: list[Signature]) -> Iterator[tuple[float, int]]:
    """The difference of each medium to the one that is nearest to it."""
    flat = np.stack([s.reshape(-1) for s in signatures]).astype(np.float32)
    squares = np.square(flat).sum(axis=1)
    for i in range(len(flat)):
        away = squares + squares[i] - 2 * flat @ flat[i]
        away[i] = np.inf
        yield difference(signatures[i], signatures[int(away.argmin())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=Path, nargs="*", default=[])
    parser.add_argument("--samples", type=int, default=2000)
    args = parser.parse_args()
    found: dict[str, list[Signature]] = {"video": [], "image": []}
    originals = []
    for name, file in islice(media(args.shards), args.samples):
        with file:
            mark = seen(file)
            if media_type(name) == "video" and len(originals) < ORIGINALS:
                file.seek(0)
                originals.append(("a video of the shards", file.read()))
        found[str(media_type(name))].append(mark)
    alarms = sum(int((lookalikes(np.stack(m), SAME_RMS, SAME_CELL)[0] >= 0).sum()) for m in found.values() if m)
    lines = [
        "# How alike media are",
        "",
        f"`python benchmarks/bench_lookalikes.py`, {platform.processor() or platform.machine()}. Limits: "
        f"{SAME_RMS} levels of 255 (RMS of all cells) and {SAME_CELL:.0f} (any cell).",
        "",
        f"False alarms: {alarms} among {sum(map(len, found.values()))} different media.",
        "",
        "| different media | n | nearest pair: RMS | its largest cell |",
        "|---|---|---|---|",
    ]
    for kind, marks in found.items():
        if len(marks) > 1:
            rms, cell = min(nearest(marks))
            lines.append(f"| {kind}s | {len(marks)} | {rms:.1f} | {cell} |")
    lines += ["", "| copy | of | RMS | largest cell | found |", "|---|---|---|---|---|"]
    originals += [(path.name, path.read_bytes()) for path in args.clips]
    for label, how in COPIES.items():
        for name, data in originals:
            rms, cell = difference(seen(io.BytesIO(data)), seen(io.BytesIO(copy(data, **how))))
            verdict = "yes" if rms <= SAME_RMS and cell <= SAME_CELL else "no"
            lines.append(f"| {label} | {name} | {rms:.2f} | {cell} | {verdict} |")
    args.out.write_text("\n".join(lines) + "\n")
    print(args.out)


if __name__ == "__main__":
    main()

"""Memory of a process that reads large video again and again, and of one that takes frames out of a long one.

`python benchmarks/bench_memory.py` prints both tables; each row is a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from pathlib import Path

import numpy as np
from bench_decoding import write_video

from timeviper.config import FramesConfig
from timeviper.datamodules.frames.video import read_video

LARGE = {"1080p": (1920, 1080), "4K": (3840, 2160)}


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def write_large(path: Path, size: tuple[int, int], frames: int = 12) -> Path:
    """A clip of noise that moves, H.264, a keyframe at its start."""
    import av

    if not path.exists():
        noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
        with av.open(str(path), "w") as file:
            stream = file.add_stream("libx264", 10, options={"preset": "ultrafast", "crf": "40"})
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            for i in range(frames):
                frame = av.VideoFrame.from_ndarray(np.roll(noise, 8 * i, axis=1), "rgb24")
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
    return path


def steps(path: str, count: int) -> list[float]:
    """Resident MB after each of `count` readings of four frames."""
    found = []
    for _ in range(count):
        read_video(path, 384, FramesConfig(fps=100.0, max_frames=4))
        found.append(resident_mb())
    return found


def peak(path: str, frames: int) -> tuple[float, float]:
    """MB that reading some frames adds to the interpreter with its libraries at most, and of that the frames."""
    before = resident_mb()
    pixels = read_video(path, 224, FramesConfig(fps=1000.0, max_frames=frames)).pixels
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - before, pixels.nbytes / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("build/bench"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60.0)
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    print("| video | after 20 readings: MB | after all | most |\n|---|---|---|---|")
    for name, size in LARGE.items():
        path = write_large(args.cache / f"{name}.mp4", size)
        with context.Pool(1) as pool:
            found = pool.apply(steps, (str(path), args.steps))
        print(f"| {name}, {args.steps} readings | {found[19]:.0f} | {found[-1]:.0f} | {max(found):.0f} |", flush=True)
    print("\n| video | peak above the libraries: MB | of it the frames |\n|---|---|---|")
    for gop in (30, 250):
        video = write_video(args.cache / f"{args.minutes:g}min_gop{gop}.mp4", args.minutes, gop)
        with context.Pool(1) as pool:
            most, own = pool.apply(peak, (str(video), 256))
        print(f"| {args.minutes:g} min, GOP {gop}, 256 frames | {most:.0f} | {own:.0f} |", flush=True)


if __name__ == "__main__":
    main()

"""Memory of a loader process that reads large video again and again, and of one that takes frames out of a long one.

    python benchmarks/bench_memory.py

Each row is a process of its own. The first table is of a loader with one process, some clips of noise a step, four
frames of each at 384 pixels: what that process alone has, the median over some steps, whatever it is at just then. The
second one is the most that `read_video` adds to an interpreter which has loaded the libraries, frames included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
from copy import deepcopy
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
from bench_far import TALK, hour
from bench_loader import Load

from timeviper.config import FramesConfig, Recipe, SourceConfig
from timeviper.config.load import load_recipe
from timeviper.datamodules.frames.video import read_video
from timeviper.datamodules.shards.pool import write_shards

LARGE = {"1080p": (1920, 1080), "4K": (3840, 2160)}


def resident_mb(which: str) -> float:
    """VmRSS: now; VmHWM: at most. What `getrusage` gives may be the peak of the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) * 1024 / 1e6


def own_mb(pid: int) -> float:
    """What a process alone has in memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024 / 1e6


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


def steps(recipe: Recipe, folder: Path, count: int) -> list[float]:
    """MB of a loader process after each of `count` steps."""
    recipe = replace(deepcopy(recipe), train=replace(recipe.train, phases={}))
    recipe.data = replace(recipe.data, sources={"large": SourceConfig(shards=str(folder))}, tokens_per_pack=150)
    recipe.data.frames = FramesConfig(fps=100.0, max_frames=4)
    for tower in recipe.model.towers.values():
        tower.image_size = 384
    load = Load(recipe)
    found = []
    for _ in load.loader(load.steps(count), 1):
        (process,) = multiprocessing.active_children()
        if process.pid:
            found.append(own_mb(process.pid))
        if len(found) == count - 1:  # with the last one the process goes
            return found
    return found


def peak(path: str, frames: int) -> tuple[float, float]:
    """MB that reading some frames adds to the interpreter with its libraries at most, and of that the frames."""
    before = resident_mb("VmRSS")
    pixels = read_video(path, 224, FramesConfig(fps=1000.0, max_frames=frames)).pixels
    return resident_mb("VmHWM") - before, pixels.nbytes / 1e6


def table(cache: Path, recipe: Recipe, count: int) -> list[str]:
    lines = ["| video | steps | MB, steps 20 to 60 | the last 40 | least and most |", "|---|---|---|---|---|"]
    for name, size in LARGE.items():
        clip, folder = write_large(cache / f"{name}.mp4", size), cache / f"large_{name}"
        if not folder.exists():
            write_shards([{"__key__": f"{i}", "mp4": clip, "json": {"messages": TALK}} for i in range(4)], folder)
        found = steps(recipe, folder, count)
        early, late, later = median(found[20:60]), median(found[-40:]), found[20:]
        lines.append(f"| {name} | {count} | {early:.0f} | {late:.0f} | {min(later):.0f} - {max(later):.0f} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        "| 256 frames of 224 px of an hour | peak above the libraries: MB | of it the frames |",
        "|---|---|---|",
    ]
    for gop in (30, 250):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            most, own = pool.apply(peak, (str(hour(cache, gop, "mp4")), 256))
        lines.append(f"| GOP {gop} | {most:.0f} | {own:.0f} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("build/bench"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    head = ["# Memory of reading", "", f"{date.today()}, {platform.machine()}, made by", ""]
    head += ["    python benchmarks/bench_memory.py", "", "```", (__doc__ or "").strip(), "```", ""]
    lines = table(args.cache, load_recipe("recipes/tiny/stage2_instruct.yaml"), args.steps)
    path = args.out / f"memory_{platform.machine()}-cpu_{date.today()}.md"
    path.write_text("\n".join([*head, *lines, ""]))
    print(f"written: {path}")


if __name__ == "__main__":
    main()

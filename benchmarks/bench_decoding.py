"""Some frames out of an hour of video: `read_video` beside sequential decoding, torchcodec and decord.

Every run is a process of its own, and the readers take turns, so that whatever else the machine does hits
all of them. Each decodes with one thread, takes the frames shown at the same times, resizes them to the same
square and holds all of them at the end. The frame's number is drawn into it, so that a run tells which frames
it really got.

torchcodec brings no FFmpeg; here it uses the one in PyAV's wheel, so both decode with the same libraries.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:  # each process loads what its reader needs, because its memory is measured
    import numpy as np
    from numpy.typing import NDArray

FPS = 30
WIDTH, HEIGHT = 320, 240
BITS = 17  # of a frame's number; an hour has 108,000 frames
BARS = slice(96, 144)  # rows that show them
PEERS = ("torchcodec==0.13.0", "decord==0.6.0")
CHUNK = 32  # frames that a peer decodes at once, into the same kind of array: less memory, no more time


@dataclass(frozen=True)
class Job:
    """One run."""

    reader: str
    video: str
    minutes: float
    frames: int
    size: int

    @property
    def wanted(self) -> list[int]:
        """Numbers of the frames shown at the centres of equal bins."""
        total = round(self.minutes * 60 * FPS)
        return [(2 * i + 1) * total // (2 * self.frames) for i in range(self.frames)]


@dataclass(frozen=True)
class Result:
    """What one run took and got."""

    wall: float
    cpu: float
    peak_mb: float
    """Of the whole process, interpreter and libraries included."""
    right: int
    """Frames that are the wanted ones."""
    md5: str


# ----- the video ---------------------------------------------------------------------------------------


def write_video(path: Path, minutes: float, gop: int) -> Path:
    """H.264 with a keyframe every `gop` frames and B-frames between; kept if it is there."""
    if path.exists():
        return path
    import av
    import numpy as np
    from av.video.stream import VideoStream
    from rich.progress import track

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.part{path.suffix}")
    rng = np.random.default_rng(0)
    ground = rng.integers(40, 216, (HEIGHT // 8, 2 * WIDTH // 8), np.uint8).repeat(8, 0).repeat(8, 1)
    grain = rng.integers(-12, 13, (64, HEIGHT, WIDTH)).astype(np.int16)
    columns = np.arange(WIDTH) * BITS // WIDTH
    with av.open(str(partial), "w") as out:
        stream = cast(VideoStream, out.add_stream("libx264", rate=FPS))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {
            "preset": "veryfast",
            "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=3:log-level=none",
        }
        planes = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
        for number in track(range(round(minutes * 60 * FPS)), f"writing {path.name}"):
            at = number // 2 % WIDTH
            planes[:HEIGHT] = (ground[:, at : at + WIDTH] + grain[number % len(grain)]).clip(16, 235)
            left = number * 3 % (WIDTH - 48)
            planes[24:72, left : left + 48] = 235
            planes[BARS] = np.where(number >> columns & 1, 235, 16)
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return partial.replace(path)


def numbers(pixels: NDArray[np.uint8]) -> list[int]:
    """Frame numbers as drawn into `[F, 3, S, S]`."""
    import numpy as np

    size = pixels.shape[-1]
    rows = slice(round(BARS.start / HEIGHT * size) + 2, round(BARS.stop / HEIGHT * size) - 2)
    centres = ((np.arange(BITS) + 0.5) * size / BITS).astype(int)
    bits = pixels[:, 1, rows][:, :, centres].mean(axis=1) > 127
    return (bits.astype(np.int64) << np.arange(BITS)).sum(axis=1).tolist()


# ----- the readers: each returns a function of one run, with everything imported ------------------------

Run = Callable[[], "NDArray[np.uint8]"]


def _ours(job: Job) -> Run:
    from timeviper.config import FramesConfig
    from timeviper.datamodules.frames.video import read_video

    frames = FramesConfig(fps=FPS, max_frames=job.frames)
    return lambda: read_video(job.video, job.size, frames).pixels


def _sequential(job: Job) -> Run:
    """Decode from the start, keep what is wanted, stop at the last of it."""
    import av
    import numpy as np

    from timeviper.datamodules.frames.draw import resized

    def run() -> NDArray[np.uint8]:
        pixels, wanted = np.empty((job.frames, 3, job.size, job.size), np.uint8), iter(job.wanted)
        with av.open(job.video) as container:
            container.streams.video[0].thread_type = "NONE"
            taken, number = 0, next(wanted)
            for i, frame in enumerate(container.decode(video=0)):
                if i == number:
                    pixels[taken] = resized(frame, job.size)
                    taken += 1
                    if taken == job.frames:
                        break
                    number = next(wanted)
        return pixels

    return run


def _torchcodec(job: Job, mode: str) -> Run:
    import torch
    from torchcodec.decoders import VideoDecoder  # type: ignore[import-not-found]
    from torchcodec.transforms import Resize  # type: ignore[import-not-found]

    torch.set_num_threads(1)

    def run() -> NDArray[np.uint8]:
        resize = Resize(size=(job.size, job.size))
        decoder = VideoDecoder(job.video, seek_mode=mode, num_ffmpeg_threads=1, transforms=[resize])
        pixels = torch.empty((job.frames, 3, job.size, job.size), dtype=torch.uint8)
        for at in range(0, job.frames, CHUNK):
            pixels[at : at + CHUNK] = decoder.get_frames_at(job.wanted[at : at + CHUNK]).data
        return pixels.numpy()

    return run


def _decord(job: Job) -> Run:
    import decord  # type: ignore[import-not-found]
    import numpy as np

    def run() -> NDArray[np.uint8]:
        reader = decord.VideoReader(job.video, width=job.size, height=job.size, num_threads=1)
        pixels = np.empty((job.frames, 3, job.size, job.size), np.uint8)
        for at in range(0, job.frames, CHUNK):
            batch = reader.get_batch(job.wanted[at : at + CHUNK]).asnumpy()
            pixels[at : at + CHUNK] = batch.transpose(0, 3, 1, 2)
        return pixels

    return run


READERS: dict[str, Callable[[Job], Run]] = {
    "sequential": _sequential,
    "read_video": _ours,
    "torchcodec exact": lambda job: _torchcodec(job, "exact"),
    "torchcodec approximate": lambda job: _torchcodec(job, "approximate"),
    "decord": _decord,
}


# ----- running them ------------------------------------------------------------------------------------


def install_peers(folder: Path) -> None:
    """Put the peers into a folder, and links to PyAV's FFmpeg under the names that torchcodec looks for."""
    import av

    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
    subprocess.run([*command, *PEERS], check=True)
    libraries = folder / "ffmpeg"
    libraries.mkdir(exist_ok=True)
    for file in (Path(av.__file__).parents[1] / "av.libs").iterdir():
        plain, _, version = file.name.partition(".so.")
        short = f"{plain.partition('-')[0]}.so.{version.partition('.')[0]}"
        for name in (file.name, short):  # the libraries find each other by their full names
            (libraries / name).unlink(missing_ok=True)
            (libraries / name).symlink_to(file)


def in_own_process(job: Job, peers: Path) -> Result:
    """One run. RuntimeError with the last line of what went wrong."""
    more = {"PYTHONPATH": str(peers), "LD_LIBRARY_PATH": str(peers / "ffmpeg"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, json.dumps(vars(job))]
    done = subprocess.run(command, env=os.environ | more, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{job.reader}: {(done.stderr.strip().splitlines() or ['ended'])[-1]}")
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def measure(job: Job) -> Result:
    """One run in this process."""
    run = READERS[job.reader](job)
    wall, cpu = time.perf_counter(), time.process_time()
    pixels = run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = peak_mb()
    right = sum(a == b for a, b in zip(numbers(pixels), job.wanted))
    return Result(wall, cpu, peak, right, hashlib.md5(pixels.tobytes()).hexdigest())


def peak_mb() -> float:
    """Highest resident memory of this process (Linux: its parent's, before it was started, does not count)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def table(cache: Path, minutes: float, counts: list[int], gops: list[int], size: int, runs: int) -> list[str]:
    """The lines of a page: every reader on every video and number of frames."""
    peers = cache / "peers"
    versions = ", ".join(f"{name} {version}" for name, version in _versions(peers).items())
    lines = [
        f"{minutes:g} minutes of H.264, {WIDTH}x{HEIGHT}, {FPS} frames a second, {round(minutes * 60 * FPS):,} frames,",
        "a keyframe every GOP frames exactly, B-frames between.",
        f"Wanted are N frames at the centres of equal bins, {size} px square.",
        "",
        f"{versions}. Median of {runs} runs of each reader in turns, each in a process of its own, with one thread.",
        "Times are from opening the file to the last pixel, without imports; the peak is that of the whole process.",
        f"torchcodec and decord resize while they decode, and are asked for {CHUNK} frames at a time, which takes less",
        "memory and no longer; torchcodec runs on the FFmpeg of PyAV's wheel.",
        "",
        "| GOP | N | reader | wall s | CPU s | min - max | of sequential | peak MB | right frames | same pixels |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for gop in gops:
        video = write_video(cache / f"{minutes:g}min_gop{gop}.mp4", minutes, gop)
        for count in counts:
            lines += _rows(gop, [Job(reader, str(video), minutes, count, size) for reader in READERS], peers, runs)
    return lines


def _rows(gop: int, jobs: list[Job], peers: Path, runs: int) -> list[str]:
    results: dict[str, list[Result]] = {}
    failed: dict[str, str] = {}
    for _ in range(runs):
        for job in jobs:
            if job.reader not in failed:
                try:
                    results.setdefault(job.reader, []).append(in_own_process(job, peers))
                except RuntimeError as error:
                    failed[job.reader] = str(error)
    plain = results["sequential"]
    floor, md5 = statistics.median(r.cpu for r in plain), plain[0].md5
    rows = []
    for job in jobs:
        if job.reader in failed:
            rows.append(f"| {gop} | {job.frames:,} | {job.reader} | not run: {failed[job.reader]} | | | | | | |")
        else:
            took = results[job.reader]
            wall, cpu = statistics.median(r.wall for r in took), statistics.median(r.cpu for r in took)
            spread = f"{min(r.cpu for r in took):.2f} - {max(r.cpu for r in took):.2f}"
            peak, right = max(r.peak_mb for r in took), min(r.right for r in took)
            same = "yes" if {r.md5 for r in took} == {md5} else "no"
            rows.append(
                f"| {gop} | {job.frames:,} | {job.reader} | {wall:.2f} | {cpu:.2f} | {spread} | {cpu / floor:.3f} "
                f"| {peak:.0f} | {right} of {job.frames} | {same} |"
            )
        print(rows[-1], flush=True)
    return rows


def _versions(peers: Path) -> dict[str, Any]:
    installed = {d.name: d.version for d in metadata.distributions(path=[str(peers)])}
    return {"PyAV": metadata.version("av")} | {name: installed[name] for name in sorted(installed)}


if __name__ == "__main__":
    print(json.dumps(vars(measure(Job(**json.loads(sys.argv[1]))))))

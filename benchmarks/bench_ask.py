"""Hours of video asked about: time a frame and peak memory of `ask` and `eval`, in pieces and whole.

`python benchmarks/bench_ask.py` writes a page into `benchmarks/`. Every row is a process of its own, with one thread.
The videos are drawn by the project's world (H.264), the model is the tiny one with random weights and open gates: time
and memory do not depend on what it has learned.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, cast

# Large tensors come from the system and go back: the peak is then what is alive, not what the heap hoards.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
OFF = ["model.transv.stages.early=null", "model.transv.stages.late=null"]
UNIFORM = ["model.transv.stages.late=null"]
# One attention block, the last, which a tenth of the frames reaches; and no time beside each frame.
EARLY = [*UNIFORM, "model.transv.stages.early.keep=0.1", "model.decoder.layout=M-M--M-M-*", "chat.time=sentence"]
SCHEDULES = {"published": [], "uniform": UNIFORM, "off": OFF, "early": EARLY}
QUESTION = "What colour is the ring?"
HOUR = 3600


@dataclass(frozen=True)
class Case:
    """One row."""

    verb: str
    """ask or eval."""
    schedule: str
    seconds: int
    """Of the video, which has one frame a second and is asked about at one frame a second."""
    piece: int = 4096
    """eval.tokens_per_piece; 0: whole."""


@dataclass(frozen=True)
class Result:
    """What a case took."""

    frames: int
    tokens: int
    cpu: float
    """CPU seconds, without loading the model."""
    start_mb: float
    """Peak of the process when the model was loaded, and had answered about 20 frames."""
    peak_mb: float
    kept_mb: float
    """What `kept_bytes` says that a prompt in pieces must keep."""
    text: str


CASES = [
    *(Case("ask", "early", seconds) for seconds in (300, HOUR, 3 * HOUR)),
    Case("ask", "early", 3 * HOUR, 0),
    *(Case("eval", "early", seconds) for seconds in (300, 3 * HOUR)),
    *(Case("ask", "published", seconds) for seconds in (300, HOUR, 3 * HOUR)),
    Case("ask", "published", HOUR, 0),
    Case("ask", "uniform", HOUR),
    Case("ask", "off", HOUR),
]


def run_folder(cache: Path, schedule: str) -> Path:
    """The tiny stage 2 with open gates."""
    return random_run(cache / f"run-{schedule}", [*SCHEDULES[schedule], "model.transv.gate=0.6"])


def random_run(folder: Path, settings: Sequence[str]) -> Path:
    """A run of the tiny stage 2, with other settings, that nobody trained."""
    import torch

    from timeviper.config.load import load_recipe
    from timeviper.tokenizer import Tokenizer
    from timeviper.weights.export import build_model, is_export, write_export

    if not is_export(folder / "export"):
        limits = ["model.decoder.max_tokens=1000000", "data.val.videos=null"]
        recipe = load_recipe("tiny/stage2_instruct", [*limits, *settings])
        recipe.train.init_from = ""
        torch.manual_seed(0)
        write_export(folder / "export", build_model(recipe).state_dict(), recipe, Tokenizer.load(""), step=0)
    return folder


def video(cache: Path, seconds: int) -> Path:
    """One frame a second, 32 pixels, drawn and encoded as the default data are."""
    import numpy as np

    from timeviper.datamodules.world.render import encode_video
    from timeviper.datamodules.world.scene import draw_video

    path = cache / f"{seconds}s.mp4"
    if not path.is_file():
        scene = draw_video(np.random.default_rng(seconds), float(seconds), 1.0, 3, None, (5, 60), pixels=32)
        path.write_bytes(encode_video(scene))
    return path


def shards(cache: Path, seconds: int) -> Path:
    """A held-out set of one question."""
    from timeviper.datamodules.shards.pool import write_shards

    folder = cache / f"shards-{seconds}"
    said = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "red"}]
    medium = {"type": "video", "member": "mp4", "duration": float(seconds), "fps": 1.0, "frames": seconds}
    sample = {"media": [medium], "conversations": [{"type": "colour", "messages": said}]}
    write_shards([{"__key__": "long", "mp4": video(cache, seconds), "json": sample}], folder)
    return folder


def measure(case: Case, cache: Path) -> Result:
    """In a process of its own."""
    import torch

    from timeviper import load
    from timeviper.inference.held_out import BLIND, WHOLE, Evaluation
    from timeviper.inference.prefill import kept_bytes
    from timeviper.weights.export import load_export

    torch.set_num_threads(1)
    run, clip = run_folder(cache, case.schedule), video(cache, case.seconds)
    settings = ["data.frames.fps=1", "data.frames.max_frames=1000000", f"eval.tokens_per_piece={case.piece}"]
    settings += ["data.workers=0", "eval.max_new_tokens=8"]
    model = load(run, device="cpu", overrides=settings)
    model.ask(QUESTION, video(cache, 20))
    start = peak_mb()
    if case.verb == "ask":
        begun = time.process_time()
        answer = model.ask(QUESTION, clip)
        cpu, tokens, frames, text = (
            time.process_time() - begun,
            answer.prompt_tokens,
            len(answer.frame_times),
            str(answer),
        )
    else:
        settings.append(f"data.val.mine.shards={shards(cache, case.seconds)}")
        evaluation = Evaluation(*load_export(run / "export", settings))
        begun = time.process_time()
        (said,), _ = (evaluation.answers(variant, quiet=True) for variant in (WHOLE, BLIND))
        cpu, frames, text = (time.process_time() - begun) / 2, case.seconds, said.written
        tokens = frames * 4 + len(model.tokenizer.encode(said.question))
    vision = 4 * frames
    kept = kept_bytes(model.model.decoder, vision, tokens - vision) if case.piece and tokens > case.piece else 0
    return Result(frames, tokens, cpu, start, peak_mb(), kept / 2**20, text)


def peak_mb() -> float:
    """Of this process alone: what `getrusage` says begins with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def in_own_process(case: Case, cache: Path) -> Result:
    return Result(**apart(__file__, cache, "--one", json.dumps(vars(case))))


def apart(script: str, cache: Path, *words: str) -> dict[str, Any]:
    """What a script says in its last line, as JSON, in a process of its own."""
    command = [sys.executable, script, "--cache", str(cache), *words]
    done = subprocess.run(command, env=os.environ | MALLOC, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


# ---- a video of ordinary size -------------------------------------------------------------------------------


def full_hd(cache: Path, seconds: int) -> Path:
    """H.264 of 1920 x 1080 at 30 frames a second."""
    import av
    import numpy as np
    from av.video.stream import VideoStream

    from timeviper.datamodules.world.render import draw
    from timeviper.datamodules.world.scene import draw_video

    path = cache / f"hd-{seconds}s.mp4"
    if path.is_file():
        return path
    scene = draw_video(np.random.default_rng(1), float(seconds), 30.0, 2, None, (4, 8), pixels=64)
    with av.open(str(path), "w") as out:
        stream = cast(VideoStream, out.add_stream("libx264", rate=30, options={"preset": "ultrafast", "g": "60"}))
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for chunk in draw(scene):
            for pixels in chunk:
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                out.mux(stream.encode(frame.reformat(1920, 1080, "yuv420p")))
        out.mux(stream.encode())
    return path


def decoding(cache: Path, seconds: int) -> dict[str, Any]:
    """Frames of a Full HD file, 10 a second, streamed at 384 pixels; in a process of its own."""
    from timeviper.config import FramesConfig
    from timeviper.datamodules.frames.stream import FrameStream

    clip, wanted = full_hd(cache, seconds), FramesConfig(fps=10.0, max_frames=10**6)
    list(FrameStream(clip, 384, FramesConfig(fps=0.1)).pieces(32))
    start, begun = peak_mb(), time.process_time()
    stream = FrameStream(clip, 384, wanted)
    foretold, count = time.process_time() - begun, 0
    for piece in stream.pieces(256):
        count += len(piece)
    cpu = time.process_time() - begun
    return {"frames": count, "foretold": foretold, "cpu": cpu, "start_mb": start, "peak_mb": peak_mb()}


# ---- the page -----------------------------------------------------------------------------------------------

INTRO = """\
The tiny model with random weights, 4 vision tokens a frame and, but for `early`, each frame's time in the prompt. The
videos are H.264, 32 pixels, one frame a second, and every frame is taken. One thread, each row in a process of its own;
CPU seconds without loading.
`start` is the peak of the process when the model is loaded and has answered about 20 frames; `kept` is what the
formula of `timeviper/inference/prefill.py` says that must be kept; `rest` is the peak without it, beside the peak of
the 5-minute video (goal: at most 1.2). `eval` is one question, the mean of the variants with and without sight.
`early` has one attention block, the last, which a tenth of the vision tokens reaches, and no times in the prompt. What
the others take beyond it, and what grows with the length, is attention to all tokens before: in 2 blocks of 10 here, in
4 of 56 in the published model. On a CPU such attention goes through masks, of which no more than MASKS MB exist at a
time: that is their `rest`, as much for three hours as for one.
"""
HEAD = (
    "| verb | TransV | video | frames | tokens | a piece | CPU s | ms a frame | start MB | peak MB | kept MB | rest |"
)


def page(cases: Sequence[Case], cache: Path, hd_seconds: int) -> list[str]:
    from timeviper.kernels.attention import MASK_BUDGET

    for seconds in {20, *(case.seconds for case in cases)}:
        video(cache, seconds)
    lines = [*INTRO.replace("MASKS", f"{5 * MASK_BUDGET / 2**20:.0f}").splitlines(), "", HEAD, "|---" * 12 + "|"]
    short: dict[tuple[str, str], float] = {}
    said: dict[tuple[str, str, int], set[str]] = {}
    for case in cases:
        found = in_own_process(case, cache)
        said.setdefault((case.verb, case.schedule, case.seconds), set()).add(found.text)
        rest = found.peak_mb - found.kept_mb
        base = short.setdefault((case.verb, case.schedule), short.get(("ask", "published"), rest))
        lines.append(
            f"| {case.verb} | {case.schedule} | {case.seconds / 60:g} min | {found.frames:,} | {found.tokens:,} "
            f"| {case.piece or 'whole'} | {found.cpu:.1f} | {1e3 * found.cpu / found.frames:.2f} "
            f"| {found.start_mb:.0f} | {found.peak_mb:.0f} | {found.kept_mb:.1f} | {rest / base:.2f} |"
        )
        print(lines[-1], flush=True)
    same = all(len(texts) == 1 for texts in said.values())
    lines += ["", f"In pieces and whole, the answers are {'the same' if same else 'NOT the same'}."]
    if hd_seconds:
        lines += ["", *_hd(cache, hd_seconds)]
    return lines


def _hd(cache: Path, seconds: int) -> list[str]:
    lines = [
        "Frames of a Full HD file (1920 x 1080, 30 frames a second), 10 a second at 384 pixels, 256 at a time, without",
        "a model. `foretold`: until number and times of all frames are known.",
        "",
        "| video | frames | foretold CPU s | all CPU s | start MB | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    for part in (seconds // 4, seconds):
        full_hd(cache, part)
        found = apart(__file__, cache, "--hd", str(part), "--one", "{}")
        lines.append(
            f"| {part} s | {found['frames']:,} | {found['foretold']:.2f} | {found['cpu']:.1f} "
            f"| {found['start_mb']:.0f} | {found['peak_mb']:.0f} |"
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("build/bench"), help="videos and exports")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--hd", type=int, default=120, help="seconds of the Full HD video; 0: none")
    parser.add_argument("--one", help="a case as JSON: measured in this process, and printed")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    if args.one:
        case = json.loads(args.one)
        print(json.dumps(vars(measure(Case(**case), args.cache)) if case else decoding(args.cache, args.hd)))
        return
    hardware = f"{platform.machine()}-cpu-1thread"
    head = [f"# Asking about hours of video, {hardware}", "", f"{date.today()}, made by", ""]
    lines = [*head, "    python benchmarks/bench_ask.py", "", *page(CASES, args.cache, args.hd), ""]
    path = args.out / f"ask_{hardware}_{date.today()}.md"
    path.write_text("\n".join(lines))
    print(f"written: {path}")


if __name__ == "__main__":
    main()

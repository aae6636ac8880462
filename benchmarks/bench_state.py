"""Many questions about one video: what the first costs, what the next ones cost from the video's state, and its size.

`python benchmarks/bench_state.py` writes a page into `benchmarks/`. Every row is a process of its own, with one thread.
The videos are drawn by the project's world, the model is the tiny one with random weights and open gates: time and
memory do not depend on what it has learned.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from bench_ask import apart, run_folder, video

QUESTIONS = ["What colour is the ring?", "When does the red circle appear?", "How many triangles are there?"]
ANSWER = 8  # tokens, of every answer


@dataclass(frozen=True)
class Case:
    """One row."""

    schedule: str
    frames: int
    tier: str = "state"
    time: str = "frames"
    """chat.time."""


@dataclass(frozen=True)
class Result:
    """CPU seconds without loading the model, and bytes."""

    tokens: int
    watch: float
    first: float
    """The video and a question, as `ask` does without a state."""
    later: float
    """Mean of three questions from the state, the prefill of their text and their answers."""
    prompt: float
    """Of these, until the first token could be written."""
    formula: int
    file: int
    save: float
    load: float
    same: bool


CASES = [
    *(Case("published", frames, time="sentence") for frames in (256, 1024, 3600)),
    *(Case("published", frames) for frames in (1024, 3600)),
    Case("uniform", 1024),
    Case("off", 1024),
    Case("published", 1024, "features"),
]


def measure(case: Case, cache: Path) -> Result:
    """In a process of its own."""
    import torch

    from timeviper import load, load_state
    from timeviper.model.state_size import state_bytes

    torch.set_num_threads(1)
    run, clip = run_folder(cache, case.schedule), video(cache, case.frames)
    settings = ["data.frames.fps=1", "data.frames.max_frames=1000000", f"eval.max_new_tokens={ANSWER}"]
    settings.append(f"chat.time={case.time}")
    model = load(run, device="cpu", overrides=settings)
    model.watch(video(cache, 20)).ask(QUESTIONS[0])  # whatever is done once
    model.ask(QUESTIONS[0], video(cache, 20))
    first, answer = timed(lambda: model.ask(QUESTIONS[0], clip))
    watch, state = timed(lambda: model.watch(clip, tier="features" if case.tier == "features" else "state"))
    if case.tier == "features":
        state.ask(QUESTIONS[0])  # reads them
    later, answers = timed(lambda: [state.ask(question) for question in QUESTIONS])
    prompt, _ = timed(lambda: [state.prompt(question) for question in QUESTIONS])
    path = cache / "bench.state"
    save, _ = timed(lambda: state.save(path))
    loading, again = timed(lambda: load_state(path, model))
    size, text = path.stat().st_size, state.tokens - case.frames * model.model.tokens_per_frame
    path.unlink()
    same = answers[0] == answer and again.ask(QUESTIONS[1]) == answers[1]
    formula = state_bytes(model.recipe.model, case.tier, case.frames, text, 4)
    return Result(answer.prompt_tokens, watch, first, later / 3, prompt / 3, formula, size, save, loading, same)


def timed(work: Any) -> tuple[float, Any]:
    begun = time.process_time()
    result = work()
    return time.process_time() - begun, result


INTRO = """\
The tiny model in float32 with random weights and 4 vision tokens a frame. `time` is `chat.time`: one sentence, as the
published model has it, or each frame's time before it, as the tiny recipes have it. The videos are H.264, 32 pixels,
one frame a second, and every frame is taken. One thread, each row in a process of its own; CPU seconds without loading
the model. `ask` is one question with its video; `watch` makes the state; `next` is the mean of three questions from it
with answers of 8 tokens, `until first` the part of it before the first token; `share` is next / ask (goal at 1,024
frames: at most 0.10). `formula` is `timeviper.model.state_size`, `file` what lies on disk.

With `frames`, three tokens of text a frame stay in the prompt, which nothing drops: behind the late stage, which ranks
by the question, blocks read them anew for each question, seven times as many as vision tokens are left. Where no stage
ranks by the question (`uniform`, `off`) nothing of the video is read again.
"""
HEAD = (
    "| TransV | time | kept | frames | tokens | ask s | watch s | next s | until first s | share "
    "| formula MB | file MB | off | save s | load s |"
)


def page(cache: Path) -> list[str]:
    lines, same = [*INTRO.splitlines(), "", HEAD, "|---" * 15 + "|"], True
    for case in CASES:
        found = Result(**apart(__file__, cache, "--one", json.dumps(asdict(case))))
        same &= found.same
        seconds = [f"{value:.3f}" for value in (found.first, found.watch, found.later, found.prompt)]
        share, off = f"{found.later / found.first:.3f}", f"{found.file / found.formula - 1:+.2%}"
        sizes = [f"{found.formula / 1e6:.2f}", f"{found.file / 1e6:.2f}", off]
        cells = [case.schedule, case.time, case.tier, f"{case.frames:,}", f"{found.tokens:,}", *seconds, share, *sizes]
        lines.append(f"| {' | '.join([*cells, f'{found.save:.3f}', f'{found.load:.3f}'])} |")
        print(lines[-1], flush=True)
    return [
        *lines,
        "",
        f"Answers with the video, from the state, and from its file: {'the same' if same else 'NOT the same'}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("build/bench"), help="videos and exports")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--one", help="a case as JSON: measured in this process, and printed")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    if args.one:
        print(json.dumps(asdict(measure(Case(**json.loads(args.one)), args.cache))))
        return
    for frames in {20, *(case.frames for case in CASES)}:
        video(args.cache, frames)
    hardware = f"{platform.machine()}-cpu-1thread"
    head = [f"# Many questions about one video, {hardware}", "", f"{date.today()}, made by", ""]
    lines = [*head, "    python benchmarks/bench_state.py", "", *page(args.cache), ""]
    path = args.out / f"state_{hardware}_{date.today()}.md"
    path.write_text("\n".join(lines))
    print(f"written: {path}")


if __name__ == "__main__":
    main()

"""What `timeviper look` takes, and whether the windows that it hides are the ones that matter.

`python benchmarks/bench_look.py` writes a page into `benchmarks/`: peak memory and CPU time of `ask` and of `look` on
one video of three lengths, of the published layout at a sixteenth of its width on 10,240 frames, and, of a trained run
(`--run`), what hiding an event costs its question beside as many random frames. Every row of the first two tables is a
process of its own, with one thread and random weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from statistics import fmean, median
from typing import Any

from bench_ask import EARLY, QUESTION, apart, peak_mb, random_run, video

# The published blocks, state, frames and stages; a sixteenth of all widths, of groups (but one) and of heads.
NARROW = [
    "model.decoder.layout=M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
    *("model.decoder.width=280", "model.decoder.mlp_width=980", "model.decoder.heads=2", "model.decoder.kv_heads=1"),
    *("model.decoder.ssm_heads=8", "model.decoder.ssm_head_dim=80", "model.decoder.ssm_state=128"),
    *("model.decoder.ssm_groups=1", "model.towers.main.tokens=16", "chat.time=sentence"),
    *("model.transv.stages.early.layer=7", "model.transv.stages.late.layer=39"),
]
SIZES = {"early": EARLY, "narrow": NARROW}


@dataclass(frozen=True)
class Case:
    """One row."""

    size: str
    verb: str
    """ask, look, or relevance: look with that method."""
    seconds: int
    """Of the video, of which a frame a second is taken."""


@dataclass(frozen=True)
class Result:
    frames: int
    tokens: int
    rows: int
    cpu: float
    start_mb: float
    peak_mb: float
    kept_mb: float
    """What the formula of the prefill says that must be kept."""
    look_mb: float
    """What that of `look` adds."""


LENGTHS = (5000, 10_000, 20_000)  # frames: 20,000, 40,000 and 80,000 tokens
FLAT = [Case("early", verb, seconds) for verb in ("ask", "look", "relevance") for seconds in LENGTHS]
LARGE = [Case("narrow", "look", frames) for frames in (640, 10_240)]


def measure(case: Case, cache: Path) -> Result:
    """In a process of its own."""
    import torch

    from timeviper import load
    from timeviper.analysis.look import look
    from timeviper.analysis.look_options import Options
    from timeviper.analysis.watch import look_bytes
    from timeviper.inference.prefill import kept_bytes

    torch.set_num_threads(1)
    settings = ["data.frames.fps=1", "data.frames.max_frames=1000000", "eval.max_new_tokens=8", "data.workers=0"]
    model = load(random_run(cache / f"look-{case.size}", SIZES[case.size]), device="cpu", overrides=settings)
    exact, decoder = case.verb == "relevance", model.model.decoder
    options = Options(method="relevance" if exact else "rows")
    look(model, QUESTION, str(video(cache, 20)), options)
    start, clip, begun = peak_mb(), str(video(cache, case.seconds)), time.process_time()
    added = rows = 0
    if case.verb == "ask":
        answer = model.ask(QUESTION, clip)
    else:
        found = look(model, QUESTION, clip, options)
        answer, rows = found.answer, len(found.row_tokens)
        blocks = [line.block for line in found.lines]
        added = look_bytes(decoder, blocks, rows, rows + 20, len(found.edges) + 4, exact)
    cpu, text = time.process_time() - begun, answer.prompt_tokens - answer.vision_tokens
    kept = kept_bytes(decoder, answer.vision_tokens, text)
    frames = len(answer.frame_times)
    return Result(frames, answer.prompt_tokens, rows, cpu, start, peak_mb(), kept / 2**20, added / 2**20)


def in_own_process(case: Case, cache: Path) -> Result:
    return Result(**apart(__file__, cache, "--one", json.dumps(vars(case))))


# ---- windows ---------------------------------------------------------------------------------------------------


def when_questions(shards: Path) -> Iterator[tuple[str, str, bytes]]:
    """Key, question and video of each held-out question for a span of time."""
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for name in sorted(n for n in tar.getnames() if n.endswith(".json")):
                sample = json.load(tar.extractfile(name))  # type: ignore[arg-type]
                for said in sample["conversations"]:
                    if said["type"] == "when":
                        words = said["messages"][0]["content"].replace("<video>", "").strip()
                        clip = tar.extractfile(name.replace(".json", ".mp4")).read()  # type: ignore[union-attr]
                        yield words, said["messages"][1]["content"], clip


def windows(run: Path, shards: Path, count: int) -> dict[str, Any]:
    """What hiding the event of a question costs the model's own answer, beside random frames."""
    from timeviper import load
    from timeviper.analysis.look import look
    from timeviper.analysis.look_options import Options
    from timeviper.analysis.windows import Hiding, against, frames_within
    from timeviper.datamodules.when import parse_interval

    model = load(run, device="cpu")
    events, others, wins, aucs, asked = [], [], [], dict[str, list[float]](), 0
    for words, answer, clip in islice(when_questions(shards), count):
        span = parse_interval(answer)
        assert span is not None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.mp4"
            path.write_bytes(clip)
            times = model.media(path).times.tolist()
            inside = [t for t in times if span[0] <= t < span[1]]
            if not inside or 2 * len(inside) > len(times):
                continue
            found = look(model, words, str(path), Options(truth=span))
            asked += 1
            for line in found.lines:
                if line.truth_auc is not None:
                    aucs.setdefault(f"{line.block} {line.kind}", []).append(line.truth_auc)
            cost = Hiding(model, found.followed)
            event = frames_within(times, span)
            events.append(cost(frozenset(event)))
            rest = against(cost, event, len(times), asked)
            others += rest
            wins += [events[-1] > one for one in rest]
    return {
        "questions": asked,
        "event": fmean(events),
        "event_median": median(events),
        "random": fmean(others),
        "random_median": median(others),
        "wins": fmean(wins),
        "auc": {name: fmean(values) for name, values in aucs.items()},
    }


# ---- the page ---------------------------------------------------------------------------------------------------

INTRO = """\
One frame a second of videos of 32 pixels that the project's world draws; random weights; one thread, each row in a
process of its own; CPU seconds without loading. `tokens` of the prompt, `rows` that were looked at. `start` is the peak
when a video of 20 seconds has been looked at; `kept` what the formula of the prefill says that must be kept, `look`
what that of `timeviper/analysis/watch.py` adds; `rest` is the peak without both, beside that of the fewest tokens.
`early` has one attention block, the last, which a tenth of the vision tokens reaches, and no times in the prompt.
`narrow` is the published layout with all its blocks, states of 128 and both stages, at a sixteenth of its widths and
heads; its longer row has as many frames as the paper shows, 163,840 vision tokens.
"""
HEAD = "| model | verb | frames | tokens | rows | CPU s | start MB | peak MB | kept MB | look MB | rest |"


def tables(cases: Sequence[Case], cache: Path) -> list[str]:
    for seconds in {20, *(case.seconds for case in cases)}:
        video(cache, seconds)
    lines, base = [*INTRO.splitlines(), "", HEAD, "|---" * 11 + "|"], dict[tuple[str, str], float]()
    for case in cases:
        found = in_own_process(case, cache)
        rest = found.peak_mb - found.kept_mb - found.look_mb
        beside = rest / base.setdefault((case.size, case.verb), rest)
        sizes = (found.start_mb, found.peak_mb)
        lines.append(
            f"| {case.size} | {case.verb} | {found.frames:,} | {found.tokens:,} | {found.rows or '-'} "
            f"| {found.cpu:.1f} | {' | '.join(f'{mb:.0f}' for mb in sizes)} "
            f"| {found.kept_mb:.1f} | {found.look_mb:.1f} | {beside:.2f} |"
        )
        print(lines[-1], flush=True)
    return lines


def told(found: dict[str, Any], run: str) -> list[str]:
    blocks = "".join(f"| {name} | {value:.2f} |\n" for name, value in found["auc"].items())
    return [
        f"Of {found['questions']} held-out questions for a span of time, put to `{run}`, whose event takes half of the "
        "frames or less, what hiding frames costs the model's own answer, in nats:",
        "",
        "| hidden | mean | median |",
        "|---|---|---|",
        f"| all frames of the event | {found['event']:.2f} | {found['event_median']:.2f} |",
        f"| as many random others | {found['random']:.2f} | {found['random_median']:.2f} |",
        "",
        f"The event costs more in {100 * found['wins']:.1f} % of the comparisons. How often a stretch of the event has "
        "a larger share than one outside (AUC, mean over questions; 0.5 is chance):",
        "",
        "| block | AUC |",
        "|---|---|",
        *blocks.splitlines(),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("build/bench"), help="videos and exports")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--run", type=Path, default=Path("runs/tiny/stage2_instruct"), help="a trained run")
    parser.add_argument("--shards", type=Path, default=Path("data/world/val/videos"), help="its held-out videos")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--part", choices=("flat", "narrow", "windows"), help="only this; prints, writes no page")
    parser.add_argument("--one", help="a case as JSON: measured in this process, and printed")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    if args.one:
        print(json.dumps(vars(measure(Case(**json.loads(args.one)), args.cache))))
        return
    if args.part in ("flat", "narrow"):
        tables(FLAT if args.part == "flat" else LARGE, args.cache)
        return
    found = told(windows(args.run, args.shards, args.questions), str(args.run))
    if args.part:
        print("\n".join(found))
        return
    hardware = f"{platform.machine()}-cpu-1thread"
    head = [f"# Looking at which seconds an answer used, {hardware}", "", f"{date.today()}, made by", ""]
    lines = [*head, "    python benchmarks/bench_look.py", "", *tables([*FLAT, *LARGE], args.cache), "", *found, ""]
    path = args.out / f"look_{hardware}_{date.today()}.md"
    path.write_text("\n".join(lines))
    print(f"written: {path}")


if __name__ == "__main__":
    main()

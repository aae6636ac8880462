"""`timeviper look`: which seconds of a video an answer used, as a page, and in the terminal."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from textwrap import wrap

import numpy as np

from timeviper.analysis.look import Look, look
from timeviper.analysis.look_options import options_of
from timeviper.analysis.look_page import NAMES, Found, headline, lacks, over, top_of, write
from timeviper.analysis.windows import Checked, Hiding, check_windows, frames_within, most_costs, random_mean
from timeviper.console import ProgressLine
from timeviper.errors import ConfigError, Problem
from timeviper.inference.ask import LoadedModel, load

CELLS = 30  # columns of a line of shades: with all beside it 80
SHADES = "▁▂▃▄▅▆▇█"
NOTHING = "·"  # where no token is left


def show(
    question: str,
    run: Path,
    video: Path,
    overrides: Sequence[str],
    *,
    rows: str,
    per: str | None,
    method: str,
    truth: str | None,
    blocks: str | None,
    check: bool,
    as_json: bool,
    out: Path | None,
    max_new_tokens: int | None,
    dtype: str | None,
) -> None:
    """Look, write OUT, and print a summary or the JSON."""
    options = options_of(rows, per, method, truth, blocks, max_new_tokens)
    if not video.is_file():
        raise FileNotFoundError(f"{video} is not there: name a video file")
    model = load(run, dtype=dtype, overrides=overrides)
    with ProgressLine(sys.stderr, stays=False) as line:
        seen = look(model, question, str(video), options, partial(line.count, unit="frames, again"))
    found = Found(seen, str(run), _checked(model, seen) if check else None)
    # An answer has a page of its own, and the same question the same one.
    name = f"{video.stem}-{zlib.crc32(f'{question}{options}'.encode()):08x}"
    files = write(found, out or _home(run) / "look" / name)
    if as_json:
        print(json.dumps(found.as_dict(), ensure_ascii=False, indent=1))
        return
    print("\n".join(summary(found)))
    print(f"\n{files[0]}")


def _home(run: Path) -> Path:
    """The run folder, also of its export."""
    return run.parent if run.name == "export" else run


def _checked(model: LoadedModel, seen: Look) -> Checked:
    if not len(seen.followed.ids):
        raise ConfigError("what to look at", [Problem("--check", "yes", "the answer is empty: nothing can be lost.")])
    times, truth = seen.answer.frame_times, seen.options.truth
    most, done = most_costs(len(times)) + (6 if truth else 0), 0
    with ProgressLine(sys.stderr, stays=False) as line:

        def count() -> None:
            nonlocal done
            done += 1
            line.count(done, max(most, done), "windows hidden")

        cost = Hiding(model, seen.followed, count)
        return check_windows(cost, len(times), None if truth is None else frames_within(times, truth))


def summary(found: Found) -> list[str]:
    """For 80 columns."""
    look, answer = found.look, found.look.answer
    left = "".join(f", {sum(counts):,} behind {stage}" for stage, counts in answer.survivors.items())
    lines = [
        *(wrap(answer.text, 80) or ["(no answer)"]),
        "",
        f"{len(answer.frame_times):,} frames of {answer.duration:g} s, {answer.vision_tokens:,} tokens{left}",
        f"-log p of the answer {look.nats:.2f} nats; {len(look.row_tokens)} rows of {look.options.rows}",
        "",
        f"{'block':<14}{'frames':>7}  {_ends(look)}  most above places alone",
    ]
    lines += [_block(look, i) for i in range(len(look.lines))]
    if look.options.truth:
        lines.append(f"{'truth':<14}{'':>7}  {_span(look, look.options.truth)}")
    for stage, counts in answer.survivors.items():
        shown = _by_stretch(look, np.array(counts, np.float64) / look.tokens_per_frame)
        lines.append(f"{'left ' + stage:<14.14}{np.mean(counts) / look.tokens_per_frame:>7.2f}  {_shades(shown, 1.0)}")
    missing = [one.missing for one in look.lines if one.missing is not None]
    if missing:
        lines.append(f"parts add up to what the blocks wrote but for {max(missing):.0e} of it")
    without = [line for words in lacks(look) for line in wrap(words, 80)]
    return [*lines, *without, "", *wrap(headline(found), 80), *_costs(found)]


def _block(look: Look, number: int) -> str:
    line = look.lines[number]
    name = f"{line.block:>2} {NAMES[line.kind]}"
    gap = over(line.share, line.null)
    told = "no token is left"
    if gap is not None:
        at = int(np.nanargmax(gap))
        first, last = look.edges[at], look.edges[at + 1]
        told = f"{first:g}-{last:g} s {line.share[at]:.2f} ({line.null[at]:.2f})"
    values = np.maximum(np.array(line.share), 0)
    return f"{name:<14}{line.vision:>7.2f}  {_shades(values)}  {told}"


def _shades(values: np.ndarray, top: float | None = None) -> str:
    """A line of CELLS columns, each the largest of what it stands for."""
    parts = (
        np.array_split(values, CELLS)
        if len(values) > CELLS
        else [values[i * len(values) // CELLS :][:1] for i in range(CELLS)]
    )
    known = values[~np.isnan(values)]
    top = top or (float(known.max()) if len(known) else 0.0) or 1.0
    cells = [float(np.nanmax(part)) if not np.isnan(part).all() else None for part in parts]
    return "".join(NOTHING if v is None else SHADES[min(int(v / top * len(SHADES)), len(SHADES) - 1)] for v in cells)


def _by_stretch(look: Look, frames: np.ndarray) -> np.ndarray:
    """The mean over the frames of each stretch."""
    at = np.searchsorted(look.edges, np.array(look.answer.frame_times) + 1e-9, side="right") - 1
    at = np.clip(at, 0, len(look.edges) - 2)
    total, count = (np.bincount(at, w, len(look.edges) - 1) for w in (frames, np.ones_like(frames)))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _ends(look: Look) -> str:
    first, last = f"{look.edges[0]:g} s", f"{look.edges[-1]:g} s"
    return first + last.rjust(CELLS - len(first))


def _span(look: Look, span: tuple[float, float]) -> str:
    scale = CELLS / look.edges[-1]
    start = min(int(span[0] * scale), CELLS - 1)
    stop = min(max(round(span[1] * scale), start + 1), CELLS)
    return (" " * start + "^" * (stop - start)).ljust(CELLS) + f"  {span[0]:g}-{span[1]:g} s"


def _costs(found: Found) -> list[str]:
    checked, lines = found.checked, []
    if checked is None:
        return lines
    lines.append(f"windows are {checked.how}")
    lines.append(f"without any frame the answer costs {checked.everything:.2f} nats more")
    for name, window in (("the top window", top_of(found)), ("the truth", checked.truth)):
        if window is not None:
            first, last = window.span(found.look)
            rest = random_mean(window)
            told = "no frame is left beside it" if rest is None else f"as many random frames {rest:.2f}"
            lines.append(f"hiding {name}, {first:g}-{last:g} s, {window.nats:.2f}; {told}")
    return lines

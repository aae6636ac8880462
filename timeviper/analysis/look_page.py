"""What `timeviper look` found, as a page, pictures and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from timeviper.analysis import draw
from timeviper.analysis.look import Look
from timeviper.analysis.page import Figure, Grid, Page, Section, write_page
from timeviper.analysis.strips import Strip, Thumb, film, timeline
from timeviper.analysis.windows import Checked, Window, random_mean
from timeviper.files import write_whole
from timeviper.svg import Drawing

MOST_CELLS = 6000  # of a table in the page; more stand in the JSON alone
NAMES = {"mamba": "Mamba", "attention": "attention"}

NOTES = (
    "What a block reads is not what the answer needs: later blocks may ignore it, or have it from elsewhere. What "
    "--check hides and what that costs is evidence; a dark cell is a place to look.",
    "A scan forgets, so its last seconds are always dark. Hold a line against its null line, which knows places alone.",
    "Compare a row with itself: sizes of Mamba and of attention are no common measure, nor are those of two blocks.",
    "Later frames carry what they saw of earlier ones, and the text between frames does, too: what a token holds need "
    "not be what its frame shows.",
    "A frame without survivors has not gone unseen: TransV hands what it drops to the question, and Mamba blocks "
    "before the stage have it in their state.",
)


@dataclass(frozen=True)
class Found:
    """A look, and where asked for what hiding costs."""

    look: Look
    run: str
    checked: Checked | None = None

    def as_dict(self) -> dict[str, Any]:
        told = {"run": self.run, **self.look.as_dict()}
        return told if self.checked is None else told | {"check": self.checked.as_dict(self.look)}


def write(found: Found, out: Path) -> list[Path]:
    """OUT/look.html, look.json and a .svg of each picture."""
    out.mkdir(parents=True, exist_ok=True)
    page = page_of(found)
    names = ("timeline", "against-places", "survivors", "hiding")
    by_name = dict(zip(names, (timeline_of(found), lines_of(found), film_of(found), bars_of(found))))
    files = [write_page(out / "look.html", page)]
    files.append(write_whole(out / "look.json", json.dumps(found.as_dict(), ensure_ascii=False, indent=1) + "\n"))
    files += [write_whole(out / f"{name}.svg", drawing.file()) for name, drawing in by_name.items() if drawing]
    return files


def page_of(found: Found) -> Page:
    look, answer = found.look, found.look.answer
    sections = [Section("Which seconds each block read", _reading(look), _figures(found), warnings=lacks(look))]
    if film_drawing := film_of(found):
        text = (
            "Frames whose tokens survived a TransV stage, with the time at which a player shows them."
            if answer.survivors
            else "Some of the frames:"
        )
        caption = f"A bar is the share of a frame's {look.tokens_per_frame} tokens that is left behind a stage."
        figure = Figure(film_drawing, caption, _survivor_table(look))
        sections.append(Section("Which frames survived", [text, *_survivor_words(look)], [figure]))
    if found.checked:
        sections.append(_checked_section(found, found.checked))
    facts = [
        ("run", found.run),
        ("video", f"{answer.video}, {answer.duration:g} s"),
        ("frames shown", len(answer.frame_times)),
        ("tokens", f"{answer.prompt_tokens:,}, {answer.vision_tokens:,} of them of frames"),
        ("-log p of the answer", f"{look.nats:.3f} nats"),
        ("rows", f"{look.options.rows}: {' | '.join(map(_visible, look.row_tokens))}"),
    ]
    lead = f"“{answer.question}” “{answer.text or '(nothing)'}”. {headline(found)}"
    return Page(f"Which seconds an answer used: {Path(answer.video).name}", lead, sections, facts, NOTES)


def headline(found: Found) -> str:
    """The one thing that was found."""
    look, checked, top = found.look, found.checked, top_of(found)
    if checked and checked.top is None:
        return f"Without any frame it costs {checked.everything:.2f} nats more: the answer hardly depends on the video."
    if checked and top is None:
        half = max((one.nats for one in checked.tried), default=0.0)
        return (
            f"Without any frame it costs {checked.everything:.2f} nats more, hiding any half of them at most "
            f"{half:.2f}: it is told more than once, or other tokens hand it on."
        )
    if top:
        first, last = top.span(look)
        rest = random_mean(top)
        beside = "" if rest is None else f", as many random frames of the rest {rest:.2f}"
        return f"Hiding {first:g} to {last:g} s costs it {top.nats:.2f} nats{beside}."
    best = peak(look)
    if best is None:
        return "No block read any frame."
    block, first, last = best
    kind = NAMES[next(one.kind for one in look.lines if one.block == block)].capitalize()
    return f"{kind} block {block} stands out most above its null line from {first:g} to {last:g} s."


def top_of(found: Found) -> Window | None:
    """The window that matters; None: not looked for, there is none, or nothing less than all frames."""
    top, count = found.checked and found.checked.top, len(found.look.answer.frame_times)
    return top if top and (len(top.frames) < count or count == 1) else None


def peak(look: Look) -> tuple[int, float, float] | None:
    """Block and stretch with the largest share over its null line, among attention blocks where there are any."""
    lines = [one for one in look.lines if one.kind == "attention"] or look.lines
    gaps = [(gap, one) for one in lines if (gap := over(one.share, one.null)) is not None]
    found = [(float(np.nanmax(gap)), int(np.nanargmax(gap)), one) for gap, one in gaps]
    if not found:
        return None
    _, at, line = max(found, key=lambda entry: entry[0])
    return line.block, look.edges[at], look.edges[at + 1]


def over(share: Sequence[float], null: Sequence[float]) -> np.ndarray | None:
    """What a line has above its null line; None: it has no number."""
    gap = np.array(share) - np.array(null)
    return None if np.isnan(gap).all() else gap


def _visible(token: str) -> str:
    return token.replace("\n", "\\n").strip() or "␣"


def _reading(look: Look) -> list[str]:
    what = (
        "its part of what the block wrote into the rows (frozen-linear relevance; parts below 0 worked against it and "
        "are drawn as 0)"
        if look.options.method == "relevance"
        else "its share of what the rows read"
    )
    whose = {"answer": "that wrote the answer", "question": "of the question", "last": "of the last prompt token"}
    rows = f"{len(look.row_tokens)} row{'s' if len(look.row_tokens) > 1 else ''} {whose[look.options.rows]}"
    return [f"For the {rows}, in every block where tokens meet: a cell is a stretch of time, dark by {what}."]


def lacks(look: Look) -> list[str]:
    """What other models have and this one has not."""
    told = []
    if "M" not in look.layout:
        told.append(f"This decoder has no Mamba block ({look.layout}): there is attention alone to look at.")
    if not look.answer.survivors:
        told.append("This model has no TransV stage: every token of every frame stays.")
    return told


def _figures(found: Found) -> list[Figure]:
    look = found.look
    stretches = len(look.edges) - 1
    table = None
    if stretches * len(look.lines) <= MOST_CELLS:
        columns = ["seconds", *(f"{one.block} {NAMES[one.kind]}" for one in look.lines)]
        rows = [
            [f"{look.edges[i]:g}-{look.edges[i + 1]:g}", *(one.share[i] for one in look.lines)]
            for i in range(stretches)
        ]
        table = Grid("Shares of each stretch", columns, rows, folded=True)
    beside = [
        [f"{one.block} {NAMES[one.kind]}", one.vision, *(one.parts.get(name) for name in _parts(look)), one.truth_auc]
        for one in look.lines
    ]
    columns = ["block", "frames", *_parts(look), "truth against the rest (AUC)"]
    if look.options.truth is None:
        beside, columns = [row[:-1] for row in beside], columns[:-1]
    return [
        Figure(
            timeline_of(found),
            "The number at the end of a row is its largest cell. Grey: no token is left there. With --check, the last "
            "row is the window whose hiding costs most, in nats.",
            table,
        ),
        Figure(
            lines_of(found),
            "Means over the blocks of a kind. Dashed: what the same tokens would get by their places alone.",
            Grid("What else the rows read, as shares", columns, beside),
        ),
    ]


def _parts(look: Look) -> list[str]:
    return list(dict.fromkeys(name for one in look.lines for name in one.parts))


def timeline_of(found: Found) -> Drawing:
    look = found.look
    strips = [Strip(f"{one.block} {NAMES[one.kind]}", one.share, one.kind) for one in look.lines]
    if top := top_of(found):
        first, last = top.span(look)
        inside = [min(b, last) - max(a, first) >= (b - a) / 2 for a, b in zip(look.edges, look.edges[1:])]
        strips.append(Strip("top window", [top.nats * here for here in inside]))
    unit = "part of what is written" if look.options.method == "relevance" else "share of what is read"
    return timeline("Influence by seconds", strips, look.edges, unit, truth=look.options.truth)


def lines_of(found: Found) -> Drawing:
    look = found.look
    middles = [(a + b) / 2 for a, b in zip(look.edges, look.edges[1:])]
    series = []
    for kind in ("mamba", "attention"):
        mine = [one for one in look.lines if one.kind == kind]
        if mine:
            for name, null in (
                (f"{NAMES[kind]}, mean of {len(mine)}", False),
                (f"{NAMES[kind]} by places alone", True),
            ):
                rows = np.array([one.null if null else one.share for one in mine])
                known = ~np.isnan(rows).all(0)
                y = np.where(known, np.nansum(rows, 0) / np.maximum((~np.isnan(rows)).sum(0), 1), np.nan)
                series.append(draw.Line(name, middles, y.tolist(), null=null))
    return draw.lines("Against places alone", series, "seconds of the video", "share of a stretch")


def film_of(found: Found) -> Drawing | None:
    look, answer = found.look, found.look.answer
    if not look.thumbs:
        return None
    stages, truth = list(answer.survivors), look.options.truth
    thumbs = [
        Thumb(
            answer.frame_times[number],
            pixels,
            [answer.survivors[stage][number] / look.tokens_per_frame for stage in stages],
            truth is not None and truth[0] <= answer.frame_times[number] < truth[1],
        )
        for number, pixels in sorted(look.thumbs.items())
    ]
    return film("Frames that survived" if stages else "Frames", thumbs, stages)


def _survivor_words(look: Look) -> Iterator[str]:
    for stage, counts in look.answer.survivors.items():
        frames = sum(n > 0 for n in counts)
        yield f"Behind {stage}: {sum(counts):,} tokens of {frames:,} of {len(counts):,} frames."
    there = sum(any(counts) for counts in zip(*look.answer.survivors.values()))
    if len(look.thumbs) < there:
        yield (
            f"{len(look.thumbs)} of {there:,} are shown, those with most tokens behind the last stage; all stand in "
            "look.json."
        )


def _survivor_table(look: Look) -> Grid | None:
    stages = list(look.answer.survivors)
    if not stages or len(look.answer.frame_times) * (len(stages) + 1) > MOST_CELLS:
        return None
    rows = [[f"{t:.3f}", *(look.answer.survivors[s][i] for s in stages)] for i, t in enumerate(look.answer.frame_times)]
    return Grid("Tokens left of each frame", ["seconds", *stages], rows, folded=True)


def bars_of(found: Found) -> Drawing | None:
    checked = found.checked
    if checked is None:
        return None
    bars = [draw.Bar("no frame at all", checked.everything, colour=5)]
    for name, window in (("top window", top_of(found)), ("truth", checked.truth)):
        if window is not None:
            first, last = window.span(found.look)
            bars.append(draw.Bar(f"{name}, {first:g}-{last:g} s", window.nats, colour=0 if name != "truth" else 2))
            if (rest := random_mean(window)) is not None:
                low, high = min(window.random), max(window.random)
                bars.append(draw.Bar("random frames", rest, low, high, colour=1))
    return draw.bars("What hiding costs", bars, "nats of the answer")


def _checked_section(found: Found, checked: Checked) -> Section:
    drawing = bars_of(found)
    assert drawing is not None
    rows = [_told(found.look, name, one) for name, one in (("top", top_of(found)), ("truth", checked.truth)) if one]
    rows += [_told(found.look, "tried", one) for one in checked.tried]
    table = Grid("Windows that were hidden", ["window", "from", "to", "frames", "nats", "random"], rows, folded=True)
    caption = "The line through a bar of random frames goes from the least to the most of the draws."
    text = [headline(found)] + (
        [f"Windows are {checked.how}; where no frame is left at all, all are gone from the prompt."]
        if checked.how
        else []
    )
    return Section("What hiding costs", text, [Figure(drawing, caption, table)])


def _told(look: Look, name: str, window: Window) -> list[object]:
    first, last = window.span(look)
    return [name, f"{first:g}", f"{last:g}", len(window.frames), window.nats, random_mean(window)]

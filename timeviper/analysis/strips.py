"""What goes over the seconds of a video, and maps, as SVG: timelines of influence, strips of frames, heat maps.

Cells are one PNG with a pixel a cell, enlarged without blur: tens of kilobytes where boxes would take megabytes.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from timeviper.datamodules.world.render import encode_image
from timeviper.svg import COLOURS, NARROW, Drawing, colour, label, line, rect, short, text, ticks, wrapped

WIDTH = 680
KINDS = {"attention": "var(--s1)", "mamba": "var(--s0)"}  # a colour per mixer
NOTHING = (222, 226, 230)  # of cells that hold no number
BAR = 12  # pixels: the height of a colour bar, and of one stage's bar under a frame


@dataclass(frozen=True)
class Strip:
    """One row of a timeline: a number for each stretch of time."""

    name: str
    values: Sequence[float]
    """NaN: nothing is known of the stretch."""
    kind: str = ""
    """`attention` or `mamba`: its name gets the mixer's colour."""


@dataclass(frozen=True)
class Thumb:
    """One frame of a film strip."""

    seconds: float
    pixels: NDArray[np.uint8]
    """`[H, W, 3]` RGB."""
    kept: Sequence[float] = ()
    """Share of its tokens that survive each stage."""
    inside: bool = False
    """Whether it lies in the truth span."""


def timeline(
    title: str,
    strips: Sequence[Strip],
    edges: Sequence[float],
    unit: str,
    *,
    truth: tuple[float, float] | None = None,
    by_row: bool = True,
    marks: Sequence[float] = (),
    desc: str = "",
    width: int = WIDTH,
) -> Drawing:
    """Rows of stretches `[edges[i], edges[i+1])` in seconds, dark where the number is large.

    by_row: every row has a scale of its own, from 0 to its largest number, which stands at its end. marks: times with
    a tick below, such as those of the frames. Raises ValueError if a row has not one number a stretch.
    """
    if not strips or any(len(one.values) != len(edges) - 1 for one in strips):
        raise ValueError(f"{title}: {len(edges) - 1} stretches of time, but rows of {[len(s.values) for s in strips]}")
    values = np.array([one.values for one in strips], np.float64)
    largest = [_largest(row) for row in values] if by_row else [_largest(values)] * len(strips)
    scale = "each row from 0 to its largest" if by_row else f"from 0 to {largest[0]:.3g}"
    said = wrapped(f"{unit}; {scale}", int(width / 6.6))
    left, right = 20 + 7 * max(len(one.name) for one in strips), width - 64
    top = 30 + 16 * len(said) + (16 if truth else 0)
    tall = 20 if len(strips) <= 24 else 12
    bottom = top + tall * len(strips)
    first, last = edges[0], edges[-1] if edges[-1] > edges[0] else edges[0] + 1

    def to_x(second: float) -> float:
        return left + (right - left) * (second - first) / (last - first)

    body = [text(0, 16, title, "b"), *(text(0, 34 + 16 * i, words, "s") for i, words in enumerate(said))]
    shares = values / np.array([v or 1.0 for v in largest])[:, None]
    body += _cells(shares, edges, to_x, top, tall)
    for i, one in enumerate(strips):
        y, fill = top + tall * i + tall / 2 + 4, KINDS.get(one.kind, "var(--ink)")
        body.append(text(left - 8, y, one.name, "e" if tall > 12 else "e s", f' style="fill:{fill}"'))
        if by_row:
            body.append(text(right + 6, y, label(float(f"{largest[i]:.2g}")), "s"))
    if truth:
        body += _truth(truth, to_x, (first, last), top, bottom)
    body += [line(to_x(m), bottom, to_x(m), bottom + 4, "var(--soft)") for m in marks if first <= m <= last]
    for tick in ticks(first, last, 8 if width > NARROW else 4):
        body += [line(to_x(tick), bottom, to_x(tick), bottom + 7, "var(--soft)")]
        body += [text(to_x(tick), bottom + 21, label(tick), "s m")]
    body.append(text((left + right) / 2, bottom + 38, "seconds of the video", "s m"))
    told, narrow = desc or _told(strips, edges, unit, truth), None
    if width > NARROW:
        how: dict[str, Any] = {"truth": truth, "by_row": by_row, "marks": marks, "desc": told, "width": NARROW}
        narrow = timeline(title, strips, edges, unit, **how)
    return Drawing(width, bottom + 46, title, told, "".join(body), narrow)


def film(
    title: str,
    thumbs: Sequence[Thumb],
    stages: Sequence[str] = (),
    *,
    desc: str = "",
    width: int = WIDTH,
    tall: int = 54,
) -> Drawing:
    """Frames with their times; below each a bar per stage, as long as the share of its tokens that survive."""
    if not thumbs:
        raise ValueError(f"{title}: there is no frame to show")
    wide = max(round(tall * one.pixels.shape[1] / one.pixels.shape[0]) for one in thumbs)
    step, high = max(wide, 44) + 8, tall + 22 + (BAR + 2) * len(stages) + 8
    columns = max(int(width // step), 1)
    body = [text(0, 16, title, "b")]
    key = 34
    for k, name in enumerate(stages):
        body += [
            rect(0, key - 9 + 16 * k, 10, 10, f"var(--s{k % COLOURS})"),
            text(16, key + 16 * k, f"kept by {name}", "s"),
        ]
    top = 26 + 16 * len(stages)
    for i, one in enumerate(thumbs):
        body += _thumb(one, (i % columns) * step, top + (i // columns) * high, wide, tall)
    rows = (len(thumbs) + columns - 1) // columns
    told = desc or "; ".join(
        f"{one.seconds:g} s" + "".join(f", {name} {share:.0%}" for name, share in zip(stages, one.kept))
        for one in thumbs
    )
    return Drawing(width, top + rows * high, title, told, "".join(body))


def heat(
    title: str,
    values: NDArray[np.floating],
    unit: str,
    *,
    floor: float | None = None,
    ceiling: float | None = None,
    borders: Sequence[tuple[int, str]] = (),
    desc: str,
    width: int = 290,
) -> Drawing:
    """A map of `[rows, columns]` queries by sources, NaN left out, with a colour bar named `unit`.

    floor: the scale is logarithmic from there; None: linear from 0. borders: (first token, name) of the parts of the
    sequence, with white lines between them.
    """
    rows, columns = values.shape
    top = float(ceiling if ceiling is not None else _largest(values)) or 1.0
    if floor is None:
        shares = values / top
    else:
        low, high = np.log10(floor), np.log10(max(top, floor * 10))
        shares = (np.log10(np.maximum(values, floor)) - low) / (high - low)
    left, head = 8, 44
    side = width - left - 84
    tall = side * rows / columns
    body = [text(0, 16, title, "b"), text(0, 34, "query down, source across", "s")]
    body.append(_image(_coloured(shares), left, head, side, tall))
    free = [0.0, 0.0]
    for first, name in borders:
        x, y = left + side * first / columns, head + tall * min(first, rows) / rows
        if 0 < first < columns:
            body.append(line(x, head, x, head + tall, "#fff"))
        if 0 < first < rows and rows == columns:
            body.append(line(left, y, left + side, y, "#fff"))
        # Names that would lie upon each other take turns.
        row = 0 if x + 2 >= free[0] else 1
        free[row] = x + 8 + 7 * len(name)
        body.append(text(x + 2, head + tall + 14 + 14 * row, name, "s"))
    body += _colour_bar(left + side + 14, head, tall, 0.0 if floor is None else floor, top, floor is not None)
    return Drawing(width, int(head + tall + 56), title, desc, "".join(body) + text(left, head + tall + 48, unit, "s"))


def image_uri(pixels: NDArray[np.uint8], codec: str = "png") -> str:
    """`[H, W, 3]` RGB as a data URI, png or (codec mjpeg, smaller for photos) jpeg."""
    kind = "png" if codec == "png" else "jpeg"
    return f"data:image/{kind};base64,{b64encode(encode_image(np.ascontiguousarray(pixels), codec)).decode()}"


def _largest(values: NDArray[np.floating]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size and finite.max() > 0 else 0.0


def _coloured(shares: NDArray[np.floating]) -> NDArray[np.uint8]:
    """RGB `[H, W, 3]` of shares in 0..1; grey where there is none."""
    table = np.array([colour(i / 255) for i in range(256)], np.uint8)
    known = np.isfinite(shares)
    pixels = table[np.where(known, np.clip(shares, 0, 1) * 255, 0).round().astype(np.uint8)]
    pixels[~known] = NOTHING
    return pixels


def _image(pixels: NDArray[np.uint8], x: float, y: float, width: float, height: float, codec: str = "png") -> str:
    place = f'x="{short(x)}" y="{short(y)}" width="{short(width)}" height="{short(height)}"'
    kind = ' class="px"' if codec == "png" else ""  # cells stay cells, photos are smoothed
    return f'<image{kind} {place} preserveAspectRatio="none" href="{image_uri(pixels, codec)}"/>'


def _cells(shares: NDArray[np.floating], edges: Sequence[float], to_x, top: float, tall: float) -> Iterator[str]:
    """The field of a timeline: one picture where all stretches are equally long, else one a stretch."""
    pixels, lengths = _coloured(shares), np.diff(np.array(edges, np.float64))
    height = tall * len(shares)
    if np.allclose(lengths, lengths[0], rtol=1e-3):
        yield _image(pixels, to_x(edges[0]), top, to_x(edges[-1]) - to_x(edges[0]), height)
    else:
        for i in range(len(lengths)):
            yield _image(pixels[:, i : i + 1], to_x(edges[i]), top, to_x(edges[i + 1]) - to_x(edges[i]) + 0.3, height)
    for i in range(len(shares) + 1):
        yield line(to_x(edges[0]), top + tall * i, to_x(edges[-1]), top + tall * i, "var(--back)")


def _truth(truth: tuple[float, float], to_x, ends: tuple[float, float], top: float, bottom: float) -> Iterator[str]:
    start, stop = (min(max(second, ends[0]), ends[1]) for second in truth)
    more = ' fill-opacity="0" stroke-width="2"'
    box = max(to_x(stop) - to_x(start), 2)
    yield rect(to_x(start), top - 3, box, bottom - top + 6, "none", "truth", more + ' stroke="#15803d"').replace(
        'style="fill:none"', 'style="fill:none;stroke:var(--truth)"'
    )
    right_half = start > (ends[0] + ends[1]) / 2  # so that the words stay in the picture
    at, anchor = (to_x(stop), "s e") if right_half else (to_x(start), "s")
    yield text(at, top - 6, f"truth {truth[0]:g} to {truth[1]:g} s", anchor, ' style="fill:var(--truth)"')


def _thumb(one: Thumb, x: float, y: float, wide: float, tall: float) -> Iterator[str]:
    yield _image(one.pixels, x, y, wide, tall, "mjpeg" if one.pixels.shape[0] > 96 else "png")
    if one.inside:
        box = f'x="{short(x)}" y="{short(y)}" width="{short(wide)}" height="{short(tall)}"'
        yield f'<rect {box} style="fill:none;stroke:var(--truth);stroke-width:3"/>'
    yield text(x + wide / 2, y + tall + 14, f"{one.seconds:.6g} s", "s m")
    for k, share in enumerate(one.kept):
        up = y + tall + 20 + (BAR + 2) * k
        yield rect(x, up, wide, BAR - 2, "var(--line)")
        yield rect(x, up, wide * share, BAR - 2, f"var(--s{k % COLOURS})", f"{share:.0%} of its tokens")


def _colour_bar(x: float, y: float, tall: float, low: float, high: float, log: bool) -> Iterator[str]:
    ramp = np.linspace(1, 0, 64)[:, None]
    yield _image(_coloured(ramp), x, y, BAR, tall)
    yield text(x + BAR + 4, y + 10, label(float(f"{high:.3g}")), "s")
    yield text(x + BAR + 4, y + tall, label(low), "s")
    if log:
        yield text(x + BAR + 4, y + tall / 2 + 4, "log", "s")


def _told(strips: Sequence[Strip], edges: Sequence[float], unit: str, truth: tuple[float, float] | None) -> str:
    """Where each row is largest, in words."""
    parts = []
    for one in strips:
        values = np.nan_to_num(np.array(one.values, np.float64), nan=-np.inf)
        at = int(values.argmax())
        if np.isfinite(values[at]):
            parts.append(f"{one.name} largest from {edges[at]:g} to {edges[at + 1]:g} s ({values[at]:.3g})")
    span = f" The truth lies from {truth[0]:g} to {truth[1]:g} s." if truth else ""
    return f"{unit} by seconds of the video. {'; '.join(parts)}.{span}"

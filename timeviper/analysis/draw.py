"""Charts of an analysis as SVG: lines with bands over the depth of a model, and bars.

Colours are those of the reader's theme. What goes over seconds, and maps, stand in `strips.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from timeviper.svg import COLOURS, NARROW, Drawing, label, line, rect, short, text, ticks, wrapped

WIDTH, HEIGHT = 680, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 62, 58  # of the field, in pixels
LEGEND = 18  # pixels a line of it, or of the title
CLOSE = 14  # pixels between two lines of small words, at least
BOLD, SMALL = 7.6, 6.6  # pixels a letter at most, on the mean over a line
DASHES = ("5 4", "1.5 3", "10 3 2 3")  # of null lines


@dataclass(frozen=True)
class Line:
    """One curve: `y` at `x`, and its 95 % band where there is one."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    n: int | None = None
    """Samples behind it; stands in the legend."""
    null: bool = False
    """What is expected of nothing: dashed and grey, each of several in dashes of its own."""


@dataclass(frozen=True)
class Level:
    """A horizontal line, dashed: what nothing, or blindness, would give."""

    y: float
    name: str


@dataclass(frozen=True)
class Bar:
    name: str
    value: float
    low: float | None = None
    high: float | None = None
    colour: int = 0


def lines(
    title: str,
    series: Sequence[Line],
    x_name: str,
    y_name: str,
    *,
    levels: Sequence[Level] = (),
    layout: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
    y_range: tuple[float, float] | None = None,
    desc: str = "",
    width: int = WIDTH,
    height: int = HEIGHT,
) -> Drawing:
    """Curves. layout: of the decoder, such as `M-M*-`, when x are its blocks: attention blocks are marked on the axis.

    Log axes leave out values that are not above 0. Raises ValueError without any finite point.
    """
    curves = [_finite(one, log_x, log_y) for one in series]
    xs = [x for one in curves for x in one.x]
    ys = [v for one in curves for v in (*one.y, *(one.low or ()), *(one.high or ()))]
    if not xs:
        raise ValueError(f"{title}: there is no point to draw")
    ys += [level.y for level in levels if not log_y or level.y > 0]
    head, below = _title(title, width), wrapped(x_name + _marked(layout), int((width - LEFT) / SMALL))
    legend = _legend(curves, width, 14 + LEGEND * (len(head) - 1))
    top = TOP + LEGEND * (len(head) - 1 + max(len(legend) - 1, 0))
    right, bottom = width - RIGHT, top + height - TOP - BOTTOM
    across = (0.0, len(layout) - 1.0) if layout else (min(xs), max(xs))
    to_x, x_ticks = _axis(*across, LEFT, right, log_x)
    to_y, y_ticks = _axis(*(y_range or _padded(min(ys), max(ys), log_y)), bottom, top, log_y)
    if layout:
        x_ticks = [v for v in x_ticks if v == int(v)]
    body = [
        *head,
        *legend,
        *_grid(x_ticks, y_ticks, to_x, to_y, (LEFT, right, bottom)),
        *(_attention(layout, to_x, top, bottom) if layout else ()),
        *(text((LEFT + right) / 2, bottom + 46 + 15 * i, words, "s m") for i, words in enumerate(below)),
        *([] if y_name in title else [text(0, top - 12, y_name, "s")]),
        *_levels(levels, to_y, LEFT, right),
        *(
            mark
            for i, one in enumerate(curves)
            for mark in _curve(one, _stroke(curves, i), _dash(curves, i), to_x, to_y)
        ),
    ]
    told = desc or _told(curves, x_name, y_name)
    how: dict[str, Any] = {"levels": levels, "layout": layout, "log_x": log_x, "log_y": log_y, "y_range": y_range}
    narrow = (
        lines(title, series, x_name, y_name, **how, desc=told, width=NARROW, height=height) if width > NARROW else None
    )
    return Drawing(width, bottom + BOTTOM + 15 * (len(below) - 1), title, told, "".join(body), narrow)


def bars(title: str, items: Sequence[Bar], unit: str, *, desc: str = "", width: int = WIDTH) -> Drawing:
    """Horizontal bars from 0, with their intervals where there are any; `unit` names the axis."""
    if not items:
        raise ValueError(f"{title}: there is no bar to draw")
    left = 12 + 7.2 * max(len(one.name) for one in items)
    over = left > width / 2  # names stand over their bars
    left, step, drop = (12.0, 38, 14) if over else (left, 24, 0)
    low = min(0.0, *(one.value if one.low is None else one.low for one in items))
    high = max(0.0, *(one.value if one.high is None else one.high for one in items))
    head = _title(title, width)
    top = 30 + LEGEND * (len(head) - 1)
    bottom = top + step * len(items)
    to_x, x_ticks = _axis(low, high if high > low else low + 1, left, width - 70, False)
    body = [*head]
    for tick in x_ticks:
        body += [line(to_x(tick), top - 4, to_x(tick), bottom), text(to_x(tick), bottom + 16, label(tick), "s m")]
    for i, one in enumerate(items):
        y, fill = top + step * i + drop, f"var(--s{one.colour % COLOURS})"
        ends = sorted((to_x(0), to_x(one.value)))
        body.append(text(0, y - 2, one.name) if over else text(left - 8, y + 14, one.name, "e"))
        body.append(rect(ends[0], y + 2, ends[1] - ends[0], 16, fill))
        end = ends[1]
        if one.low is not None and one.high is not None:
            body.append(line(to_x(one.low), y + 10, to_x(one.high), y + 10, "var(--ink)", ' stroke-width="2"'))
            end = max(end, to_x(one.high))
        body.append(text(end + 6, y + 14, label(float(f"{one.value:.3g}")), "s"))
    body.append(text((left + width - 70) / 2, bottom + 34, unit, "s m"))
    told = desc or f"{unit}: " + "; ".join(f"{one.name} {one.value:.3g}" for one in items)
    narrow = bars(title, items, unit, desc=told, width=NARROW) if width > NARROW else None
    return Drawing(width, bottom + 44, title, told, "".join(body), narrow)


def _finite(one: Line, log_x: bool, log_y: bool) -> Line:
    """Without points that cannot be drawn; a band that does not reach above 0 ends at the curve on a log axis."""
    low, high = one.low or one.y, one.high or one.y
    points = [
        p
        for p in zip(one.x, one.y, low, high)
        if all(map(math.isfinite, p)) and (p[0] > 0 or not log_x) and (p[1] > 0 or not log_y)
    ]
    x, y, low, high = zip(*points) if points else ((), (), (), ())
    if log_y:
        low = tuple(b if b > 0 else c for b, c in zip(low, y))
    banded = one.low is not None and one.high is not None
    return Line(one.name, x, y, low if banded else None, high if banded else None, one.n, one.null)


def _padded(low: float, high: float, log: bool) -> tuple[float, float]:
    if log:
        return low / 1.2, high * 1.2
    room = 0.06 * (high - low) or max(abs(low) * 0.1, 0.5)
    return low - room, high + room


def _axis(low: float, high: float, start: float, end: float, log: bool) -> tuple[Callable[[float], float], list[float]]:
    """Where a value stands between two pixels, and the values that are named."""
    if not high > low:
        low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
    if not log:
        return lambda v: start + (end - start) * (v - low) / (high - low), ticks(low, high)
    a, b = math.log10(low), math.log10(high)
    powers = [10.0**k for k in range(math.ceil(a), math.floor(b) + 1)]
    named = powers[:: math.ceil(len(powers) / 7)] if len(powers) > 1 else ticks(low, high, 4)
    return lambda v: start + (end - start) * (math.log10(v) - a) / (b - a), named


def _grid(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
    field: tuple[float, float, float],
) -> Iterator[str]:
    left, right, bottom = field
    for tick in y_ticks:
        yield line(left, to_y(tick), right, to_y(tick))
        yield text(left - 6, to_y(tick) + 4, label(tick), "s e")
    for tick in x_ticks:
        yield line(to_x(tick), bottom, to_x(tick), bottom + 5, "var(--soft)")
        yield text(to_x(tick), bottom + 26, label(tick), "s m")
    yield line(left, bottom, right, bottom, "var(--soft)")


def _attention(layout: str, to_x: Callable[[float], float], top: float, bottom: float) -> Iterator[str]:
    """A faint column and a triangle on the axis at every attention block."""
    for block in (i for i, kind in enumerate(layout) if kind == "*"):
        x = to_x(block)
        yield line(x, top, x, bottom, "var(--s1)", ' stroke-width="8" stroke-opacity=".14"')
        yield f'<path d="M{short(x)} {short(bottom + 2)}l5 9h-10z" style="fill:var(--s1)"/>'


def _marked(layout: str | None) -> str:
    return " (triangles: attention blocks)" if layout and "*" in layout else ""


def _levels(levels: Sequence[Level], to_y: Callable[[float], float], left: float, right: float) -> Iterator[str]:
    """Those that lie close have one label, since two would lie on each other."""
    labels: list[tuple[float, str]] = []
    for y, name in sorted((to_y(level.y), level.name) for level in levels):
        yield line(left, y, right, y, "var(--soft)", ' stroke-dasharray="5 4"')
        if labels and y - labels[-1][0] < CLOSE:
            labels[-1] = labels[-1][0], f"{labels[-1][1]}, {name}"
        else:
            labels.append((y, name))
    yield from (text(right - 2, y - 4, words, "s e") for y, words in labels)


def _stroke(curves: Sequence[Line], place: int) -> str:
    if curves[place].null:
        return "var(--soft)"
    return f"var(--s{sum(not one.null for one in curves[:place]) % COLOURS})"


def _dash(curves: Sequence[Line], place: int) -> str:
    if not curves[place].null:
        return ""
    return f' stroke-dasharray="{DASHES[sum(one.null for one in curves[:place]) % len(DASHES)]}"'


def _curve(
    one: Line, stroke: str, dash: str, to_x: Callable[[float], float], to_y: Callable[[float], float]
) -> Iterator[str]:
    def path(ys: Sequence[float], xs: Sequence[float] = one.x) -> str:
        return " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in zip(xs, ys))

    if one.low and one.high:
        there_and_back = path(one.high) + " " + path(one.low[::-1], one.x[::-1])
        yield f'<polygon points="{there_and_back}" style="fill:{stroke};fill-opacity:.16"/>'
    yield f'<polyline points="{path(one.y)}" style="fill:none;stroke:{stroke};stroke-width:2"{dash}/>'
    if len(one.x) <= 80 and not one.null:
        for x, y in zip(one.x, one.y):
            yield f'<circle cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="2.6" style="fill:{stroke}"/>'


def _title(words: str, width: int) -> list[str]:
    """A line each."""
    return [text(0, 16 + LEGEND * i, part, "b") for i, part in enumerate(wrapped(words, int(width / BOLD)))]


def _legend(curves: Sequence[Line], width: int, title: float) -> list[str]:
    """Names with n, beside each other in as many lines as they need; below the title, which ends at that height."""
    left = LEFT if width > NARROW else 0
    rows, x = [""], left
    for i, one in enumerate(curves):
        name = one.name + (f" (n = {one.n:,})" if one.n is not None else "")
        room = 42 + 7 * len(name)
        if x > left and x + room > width:
            rows, x = [*rows, ""], left
        y = title + 16 + LEGEND * (len(rows) - 1)
        dash = f'{_dash(curves, i)} stroke-width="{2 if one.null else 3}"'
        rows[-1] += line(x, y, x + 24, y, _stroke(curves, i), dash) + text(x + 29, y + 4, name, "s")
        x += room
    return rows


def _told(curves: Sequence[Line], x_name: str, y_name: str) -> str:
    """Every curve's ends and extremes in words."""
    parts = []
    for one in curves:
        if one.x:
            top, low = max(range(len(one.x)), key=one.y.__getitem__), min(range(len(one.x)), key=one.y.__getitem__)
            parts.append(
                f"{one.name}: {one.y[0]:.3g} at {one.x[0]:g}, {one.y[-1]:.3g} at {one.x[-1]:g}, "
                f"highest {one.y[top]:.3g} at {one.x[top]:g}, lowest {one.y[low]:.3g} at {one.x[low]:g}"
            )
    return f"{y_name} by {x_name}. " + "; ".join(parts) + "."

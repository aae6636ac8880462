"""Maps of needles as a picture (SVG, without any other file): lengths across, depths down, as the field draws them.

Each map has two fields: right answers, and the overlap of intervals where these are asked for. A cell shows its number,
and its interval when one points at it. Colours run from light to dark in one hue, so that they are told apart by
everybody and in print.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from timeviper.inference.needle_map import Cell, Comparison, Map, Row
from timeviper.svg import colour, wrapped

CELL_W, CELL_H, GAP = 64, 26, 44  # pixels
LEFT, TOP, BELOW = 66, 66, 62  # of a field: room for what stands beside it
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222}.t{font-weight:600;font-size:14px}.s{font-size:11px;fill:#555}"
    ".n{text-anchor:middle}.r{text-anchor:end}"
)


def picture(comparison: Comparison) -> str:
    """The SVG of all maps, one below the other."""
    rows = comparison.maps[0].rows
    overlaps = any(cell.miou is not None for one in comparison.maps for row in one.rows for cell in row.cells)
    field_w, field_h = LEFT + CELL_W * len(rows), TOP + CELL_H * (comparison.depths + 1) + BELOW
    fields = 2 if overlaps else 1
    width = max(fields * field_w + (fields - 1) * GAP + 20, 420)
    notes = [line for note in comparison.notes for line in wrapped(note, width // 6)]
    height = field_h * len(comparison.maps) + 16 * len(notes) + 20
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">',
            f"<title>{escape(_title(comparison))}</title><style>{STYLE}</style>",
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            *(
                line
                for number, one in enumerate(comparison.maps)
                for line in _map(one, 10, number * field_h, field_w + GAP, overlaps)
            ),
            *(
                f'<text class="s" x="10" y="{field_h * len(comparison.maps) + 16 * (i + 1)}">{escape(note)}</text>'
                for i, note in enumerate(notes)
            ),
            "</svg>\n",
        ]
    )


def _title(comparison: Comparison) -> str:
    return f"needles of {comparison.needles} by length and depth: {'; '.join(one.title for one in comparison.maps)}"


def _map(one: Map, x: int, y: int, step: int, overlaps: bool) -> Iterator[str]:
    yield f'<text class="t" x="{x}" y="{y + 22}">{escape(one.title)}</text>'
    values = [[cell.accuracy.value if cell.accuracy else None for cell in row.cells] for row in one.rows]
    totals = [row.accuracy.value if row.accuracy else None for row in one.rows]
    yield from _field("right answers", one.rows, values, totals, x, y)
    if overlaps:
        values = [[cell.miou for cell in row.cells] for row in one.rows]
        totals = [row.miou.value if row.miou else None for row in one.rows]
        yield from _field("mean IoU of “when”", one.rows, values, totals, x + step, y)


def _field(
    name: str,
    rows: Sequence[Row],
    values: Sequence[Sequence[float | None]],
    totals: Sequence[float | None],
    x: int,
    y: int,
) -> Iterator[str]:
    depths, top = len(rows[0].cells), y + TOP
    yield f'<text class="s" x="{x}" y="{y + 40}">{escape(name)}; depth in the video (%), down</text>'
    for part, cell in enumerate(rows[0].cells):
        label = f"{100 * cell.depth[0]:.0f}-{100 * cell.depth[1]:.0f}"
        yield f'<text class="s r" x="{x + LEFT - 8}" y="{top + part * CELL_H + 17}">{label}</text>'
    yield f'<text class="s r" x="{x + LEFT - 8}" y="{top + depths * CELL_H + 23}">all</text>'
    for column, row in enumerate(rows):
        left = x + LEFT + column * CELL_W
        for part, cell in enumerate(row.cells):
            yield _cell(left, top + part * CELL_H, values[column][part], _told(row, cell))
        yield _cell(left, top + depths * CELL_H + 6, totals[column], _total(row))
        base = top + (depths + 1) * CELL_H + 24
        yield f'<text class="n" x="{left + CELL_W // 2}" y="{base}">{row.frames:,}</text>'
    yield f'<text class="s" x="{x + LEFT}" y="{top + (depths + 1) * CELL_H + 42}">frames of the video</text>'


def _cell(x: int, y: int, value: float | None, told: str) -> str:
    box = f'x="{x}" y="{y}" width="{CELL_W - 2}" height="{CELL_H - 2}"'
    tip = f"<title>{escape(told)}</title>"
    middle = f'class="n" x="{x + CELL_W // 2 - 1}" y="{y + 17}"'
    if value is None:
        return f'<g>{tip}<rect {box} fill="#fff" stroke="#bbb" stroke-dasharray="3"/><text {middle}>-</text></g>'
    ink = "#fff" if value > 0.6 else "#222"
    return f'<g>{tip}<rect {box} fill="rgb{colour(value)}"/><text {middle} style="fill:{ink}">{value:.2f}</text></g>'


def _told(row: Row, cell: Cell) -> str:
    where = f"{row.frames:,} frames, depth {100 * cell.depth[0]:.0f} to {100 * cell.depth[1]:.0f} %"
    if cell.accuracy is None:
        return f"{where}: not asked"
    right = f"{cell.accuracy.value:.3f} right ({cell.accuracy.low:.3f} to {cell.accuracy.high:.3f})"
    types = "".join(f"; {kind} {share:.3f}" for kind, share in cell.types.items())
    overlap = "" if cell.miou is None else f"; mean IoU {cell.miou:.3f}"
    return f"{where}: {right}, {cell.needles} needles, {cell.questions} questions{types}{overlap}"


def _total(row: Row) -> str:
    if row.accuracy is None:
        return f"{row.frames:,} frames: not asked"
    right = f"{row.accuracy.value:.3f} right ({row.accuracy.low:.3f} to {row.accuracy.high:.3f})"
    overlap = "" if row.miou is None else f"; mean IoU {row.miou.value:.3f} ({row.miou.low:.3f} to {row.miou.high:.3f})"
    return f"{row.frames:,} frames, all depths: {right}, {row.videos} videos, {row.questions} questions{overlap}"

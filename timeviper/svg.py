"""Words, colours and numbers of pictures written by hand as SVG: what every drawing shares."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from html import escape

LIGHT, DARK = (239, 246, 252), (8, 56, 112)  # one hue from light to dark, told apart by everybody and in print
# In the reader's colours: a page holds this once, a file of its own brings it along.
STYLE = (
    "svg.tv{--ink:#1f2328;--soft:#57606a;--line:#d0d7de;--back:#fff;--truth:#15803d;--s0:#0b5cad;--s1:#b45309;"
    "--s2:#15803d;--s3:#7c3aed;--s4:#be185d;--s5:#475569;--s6:#0e7490;--s7:#737300;font:13px system-ui,sans-serif}"
    "@media(prefers-color-scheme:dark){svg.tv{--ink:#e6edf3;--soft:#9da7b3;--line:#3d444d;--back:#0d1117;"
    "--truth:#4ade80;--s0:#6cb6ff;--s1:#f0a35e;--s2:#4ade80;--s3:#c4a1ff;--s4:#f78fb3;--s5:#a8b3c0;--s6:#67e8f9;--s7:#d4d43b}}"
    ".tv text{fill:var(--ink)}.tv .s{fill:var(--soft);font-size:12px}.tv .m{text-anchor:middle}"
    ".tv .e{text-anchor:end}.tv .b{font-weight:600}.tv .px{image-rendering:pixelated}"
)
NARROW = 360  # pixels
COLOURS = 8  # of lines, --s0 to --s7 of STYLE


@dataclass(frozen=True)
class Drawing:
    """One picture: its marks, and what they show in words for those who do not see them."""

    width: int
    height: int
    title: str
    desc: str
    """What is to be seen, in a sentence or two, with the numbers that matter."""
    body: str
    narrow: Drawing | None = None
    """The same for a telephone."""

    def inline(self) -> str:
        """For a page that holds STYLE."""
        return self._svg("")

    def file(self) -> str:
        """A file of its own, on the reader's background."""
        ground = f'<rect width="{self.width}" height="{self.height}" style="fill:var(--back)"/>'
        return self._svg(f"<style>{STYLE}</style>{ground}") + "\n"

    def _svg(self, before: str) -> str:
        name = f"{zlib.crc32((self.title + self.desc + self.body).encode()):08x}"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="tv" role="img" aria-labelledby="t{name} d{name}" '
            f'viewBox="0 0 {self.width} {self.height}" width="{self.width}">'
            f'<title id="t{name}">{escape(self.title)}</title><desc id="d{name}">{escape(self.desc)}</desc>'
            f"{before}{self.body}</svg>"
        )


def text(x: float, y: float, words: object, classes: str = "", more: str = "") -> str:
    """Words at a place; classes: s small, m middle, e end, b bold."""
    kind = f' class="{classes}"' if classes else ""
    return f'<text x="{short(x)}" y="{short(y)}"{kind}{more}>{escape(str(words))}</text>'


def rect(x: float, y: float, width: float, height: float, fill: str, tip: str = "", more: str = "") -> str:
    """A box; tip: what it tells when one points at it."""
    told = f"<title>{escape(tip)}</title>" if tip else ""
    place = f'x="{short(x)}" y="{short(y)}" width="{short(max(width, 0))}" height="{short(max(height, 0))}"'
    return f'<rect {place} style="fill:{fill}"{more}>{told}</rect>'


def line(x1: float, y1: float, x2: float, y2: float, stroke: str = "var(--line)", more: str = "") -> str:
    ends = f'x1="{short(x1)}" y1="{short(y1)}" x2="{short(x2)}" y2="{short(y2)}"'
    return f'<line {ends} style="stroke:{stroke}"{more}/>'


def colour(share: float) -> tuple[int, int, int]:
    """Of a share in 0..1, from light to dark."""
    share = min(max(share, 0.0), 1.0)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(LIGHT, DARK))
    return red, green, blue


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within a range, `most` of them or fewer."""
    if not high > low:
        return [low]
    rough = (high - low) / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A coordinate or a label without digits that nobody sees."""
    return f"{value:.6g}" if abs(value) < 1 else f"{value:.2f}".rstrip("0").rstrip(".")


def label(value: float) -> str:
    """A number beside an axis."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.6g}"


def wrapped(words: str, most: int) -> list[str]:
    """Lines of at most `most` characters, a longer word whole."""
    lines = [""]
    for word in words.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > most:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines

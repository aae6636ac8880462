"""Pages and drawings: nothing from elsewhere, words escaped, a text for every picture, numbers where they belong."""

from __future__ import annotations

import re
from base64 import b64decode
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from timeviper.analysis.draw import Bar, Level, Line, bars, lines
from timeviper.analysis.page import Figure, Grid, Page, PageTooLarge, Section, render, write_page
from timeviper.analysis.strips import Strip, Thumb, film, heat, image_uri, timeline
from timeviper.analysis.written import as_json, write
from timeviper.svg import NARROW, Drawing, ticks, wrapped

SVG = "{http://www.w3.org/2000/svg}"
CURVES = [Line("a <b>", [0, 3, 8], [0.2, 0.5, 0.9], [0.1, 0.4, 0.8], [0.3, 0.6, 1.0], n=83)]


def drawings() -> list[Drawing]:
    cells = np.where(np.tri(6, dtype=bool), 0.5, np.nan)
    frames = [Thumb(i * 0.5, np.full((8, 12, 3), 99, np.uint8), [0.5, 0.25], i == 1) for i in range(20)]
    strips = [Strip("block 0", [0.0, 1.0, float("nan")], "mamba"), Strip("block 3", [0.2, 0.2, 0.4], "attention")]
    return [
        lines("Blocking & depth", CURVES, "block", "share", layout="M-M*-M-M*-", levels=[Level(0.17, "blind")]),
        bars("Scores", [Bar("ours", 0.9, 0.8, 1.0), Bar("blind", -0.1)], "share"),
        timeline("Influence", strips, [0, 1, 2, 3], "share", truth=(2.5, 9.0), marks=[0.5]),
        timeline("Uneven", strips, [0, 1, 2, 30], "share", by_row=False),
        film("Frames", frames, ["early", "late"]),
        heat("Map", cells, "share", floor=1e-3, borders=[(0, "video"), (3, "answer")], desc="a map"),
    ]


@pytest.mark.parametrize("drawing", drawings(), ids=lambda d: d.title)
def test_drawings_are_svg_that_tells_what_it_shows(drawing: Drawing) -> None:
    for one in (drawing, drawing.narrow):
        if one is None:
            continue
        root = ElementTree.fromstring(one.file())
        title, desc = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
        assert title is not None
        assert desc is not None
        assert root.get("role") == "img"
        assert root.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"
        assert title.text == drawing.title
        assert desc.text
        numbers = re.findall(r'\b(?:x|y|x1|x2|y1|y2|width|height)="([^"]*)"', one.body)
        assert all(-20 <= float(n) <= 2 * max(one.width, one.height) for n in numbers)
    if drawing.narrow:
        assert drawing.narrow.width == NARROW


def test_long_words_stay_in_the_picture() -> None:
    """At the mean width of a letter in common fonts, wide and on a telephone."""
    y_name = "KL from the model without stages, nats a token"
    curves = [Line("random, attention + Mamba-2 + TransV", [0, 8], [0.1, 0.2], n=1000, null=True), *CURVES]
    levels = [Level(0.2, "no cut"), Level(0.21, "blind"), Level(0.9, "text alone")]
    drawn = [
        lines(f"Keep 0.25: {y_name}", curves, "tokens are dropped before block", y_name, layout="M*M", levels=levels),
        bars("What each cut costs at block 0", [Bar("V-IA, attention + Mamba-2 + TransV", 0.5, 0.4, 0.6)], y_name),
    ]
    for one in (d for drawing in drawn for d in (drawing, drawing.narrow) if d):
        for element in ElementTree.fromstring(one.file()).iter(f"{SVG}text"):
            classes, x = (element.get("class") or "").split(), float(element.get("x") or 0)
            wide = (6.0 if "s" in classes else 6.9 if "b" in classes else 6.5) * len(element.text or "")
            left = x - wide * (0.5 if "m" in classes else 1.0 if "e" in classes else 0.0)
            assert left >= -1, element.text
            assert left + wide <= one.width + 1, element.text
    assert "blind, no cut" in drawn[0].body, "two labels would lie upon each other"


def test_a_band_a_null_line_and_attention_blocks_are_drawn() -> None:
    null = Line("null", [0, 8], [0.5, 0.5], null=True)
    drawn = lines("t", [*CURVES, null], "block", "share", layout="M-M*-M-M*-")
    assert drawn.body.count("<polygon") == 1
    assert drawn.body.count("<path") == 2  # a triangle for each *
    assert 'stroke-dasharray="5 4"' in drawn.body
    assert "(n = 83)" in drawn.body
    assert "lowest 0.2 at 0" in drawn.desc


def test_what_cannot_be_drawn_is_left_out_or_refused() -> None:
    drawn = lines("t", [Line("a", [1, 2, 3], [0.0, float("nan"), 5.0])], "x", "y", log_y=True)
    assert drawn.body.count("<circle") == 1
    with pytest.raises(ValueError, match="no point to draw"):
        lines("t", [Line("a", [1], [float("inf")])], "x", "y")
    with pytest.raises(ValueError, match="2 stretches of time, but rows of"):
        timeline("t", [Strip("a", [1.0])], [0, 1, 2], "u")


def test_cells_are_one_pixel_each_and_thumbnails_are_their_frames() -> None:
    import io

    import av

    uri = image_uri(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3))
    with av.open(io.BytesIO(b64decode(uri.partition(",")[2])), "r") as file:
        picture = next(file.decode(video=0)).to_ndarray(format="rgb24")
    assert (picture == np.arange(18).reshape(2, 3, 3)).all()


def test_pages_need_no_network_and_escape_words(tmp_path: Path) -> None:
    table = Grid("numbers <i>", ["a", "b"], [["x", 1234.5], [None, True], ["<script>", 7]], folded=True)
    figures = [Figure(drawing, "how to <read> it", table) for drawing in drawings()]
    section = Section("S <s>", ["p <q>"], figures, warnings=["w <w>"], commands=["timeviper <c>"])
    page = Page("T & <t>", "lead <b>", [section], [("run", "<r>")], ["n <n>"])
    text = render(page)
    for word in ("<t>", "<s>", "<q>", "<w>", "<r>", "<n>", "<i>", "<read>", "<script>", "lead <b>", "<c>"):
        assert word not in text
    outside = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|<script|<link rel=.stylesheet|@import|url\(", outside)
    assert "prefers-color-scheme:dark" in text
    assert "1,234" in text  # four digits
    assert text.count("In words") == len(figures)
    written = write(tmp_path, "p", page, {"value": float("inf"), "list": [float("nan"), 1]})
    assert written.read_text(encoding="utf-8") == text
    assert len(list(tmp_path.glob("p-*.svg"))) == len(figures)
    assert '"value": null' in (tmp_path / "p.json").read_text()


def test_a_page_that_is_too_large_says_what_takes_the_room(tmp_path: Path) -> None:
    large = Drawing(1, 1, "t", "d", "x" * 5_100_000)
    page = Page("T", "l", [Section("small"), Section("frames", figures=[Figure(large, "c")])])
    with pytest.raises(PageTooLarge, match=r"5\.1 MB, more than 5, .*\(frames: 5\.1 MB of pictures"):
        write_page(tmp_path / "p.html", page)
    assert not list(tmp_path.iterdir())


def test_small_things() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(3, 3) == [3]
    assert wrapped("aa bb cccc", 5) == ["aa bb", "cccc"]
    assert as_json({"a": (1, 2.5)}).replace("\n", "").replace(" ", "") == '{"a":[1,2.5]}'

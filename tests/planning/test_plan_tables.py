"""Plans on terminals of any width: no figure is cut or broken, no line is wider."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tree import ROOT

from timeviper.config.load import load_recipe
from timeviper.planning import report, show
from timeviper.planning.hardware import Assumptions
from timeviper.planning.tables import print_figures

# Longer words than any part, stage or setting that names a row.
WORDS = st.lists(st.text("abc,", min_size=1, max_size=12), min_size=1, max_size=6).map(" ".join)
FIGURES = st.text("0123456789,.%", min_size=1, max_size=14)


def printed(width: int, columns: list[str], rows: list[list[str]]) -> list[str]:
    out = Console(width=width, file=io.StringIO())
    print_figures(out, columns, rows)
    return out.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]


@settings(deadline=None, max_examples=15)
@given(st.data(), st.integers(40, 250), st.integers(1, 9), st.integers(1, 4))
def test_figures_are_whole_at_any_width(data: st.DataObject, width: int, columns: int, rows: int) -> None:
    names = [data.draw(WORDS) for _ in range(columns + 1)]
    cells = [[data.draw(WORDS), *(data.draw(FIGURES) for _ in range(columns))] for _ in range(rows)]
    lines = printed(width, names, cells)
    assert max(map(len, lines)) <= width
    # Each table has all rows, in order, and the tables together all columns, in order.
    words = [line.split("|") for line in lines if line.startswith("|")]
    tables: list[list[list[str]]] = []
    for line in words:
        if set("".join(line).strip()) == {"-"}:
            tables.append([])
        elif tables and any(cell.strip() for cell in line[2:-1]):
            tables[-1].append([cell.strip() for cell in line[2:-1]])
    found = [[cell for table in tables for cell in table[i]] for i in range(rows)]
    assert found == [row[1:] for row in cells]


def test_wide_enough_it_is_markdown() -> None:
    lines = printed(250, ["part", "trained parameters"], [["the tower", "1"], ["all of it", "22"]])
    assert [line for line in lines if line.strip()] == [
        "| part      | trained parameters |",
        "|-----------|--------------------|",
        "| the tower |                  1 |",
        "| all of it |                 22 |",
    ]


@pytest.mark.parametrize("width", [60, 80])
def test_plans_are_readable_on_a_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stage of four phases that does not fit, with what would help, and beside another one."""
    monkeypatch.setattr(report, "console", lambda: Console(width=width, force_terminal=True, color_system=None))
    stage2, stage3 = (ROOT / f"recipes/nano9b/{name}.yaml" for name in ("stage2_instruct", "stage3_long"))
    assert len(load_recipe(stage3).train.phases) == 4
    assert not show.plan([stage3], [], 1, "h100", Assumptions(), True)
    alone = capsys.readouterr().out
    assert not show.plan([stage2, stage3], [], 1, "h100", Assumptions(), True)
    both = capsys.readouterr().out
    for text in (alone, both):
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
    for whole in (
        "10,645.5",
        "9,421,322,530",
        "hours (428 GPU hours)",
        "model.lora.targets=[mamba,attention,mlp]",
        "mamba ",
    ):
        assert whole in " ".join(alone.split()), whole

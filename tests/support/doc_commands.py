"""The commands of the pages, as a reader would type them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tree import ROOT

NAMES = "features your-data recipes planning look-inside ask-at-scale benchmarks extending api"
PAGES = ("README.md", *(f"docs/{name}.md" for name in NAMES.split()), "recipes/README.md")
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[str]:
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def lines(block: str) -> Iterator[str]:
    """Commands, whole, without what a here-document holds."""
    joined, end = block.replace("\\\n", " "), ""
    for line in joined.splitlines():
        if end:
            end = "" if line == end else end
            continue
        if found := re.search(r"<<'?(\w+)'?", line):
            end = found[1]
        if line.strip() and not line.startswith("#"):
            yield line

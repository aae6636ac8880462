"""docs/extending.md does what it says: its files and lines go into a copy of the repository, its commands run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from tree import ROOT

PAGE = (ROOT / "docs/extending.md").read_text()
# A heading's text up to the next one; and in it a comment that says what the block behind it is.
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
BLOCK = re.compile(r"<!-- (new|in|run)(?:: | )?(.*?)-->\n```\w+\n(.*?)```", re.DOTALL)
COPIED = ("timeviper", "kernels", "datamodules", "callbacks", "recipes")


def apply(copy: Path, what: str, where: str, text: str) -> None:
    """A new file, or lines behind or in place of the one that `where` quotes."""
    if what == "new":
        (copy / where.strip()).write_text(text)
        return
    name, how, line = re.fullmatch(r"(\S+), (after|instead of) `(.*)` ", where).groups()  # type: ignore[union-attr]
    before = (copy / name).read_text()
    assert before.count(f"\n{line}\n") == 1, f"{name} has not exactly one line {line!r}"
    kept = f"{line}\n" if how == "after" else ""
    (copy / name).write_text(before.replace(f"\n{line}\n", f"\n{kept}{text}"))


@pytest.mark.parametrize("title", SECTIONS)
def test_the_example_works(title: str, tmp_path: Path, world: Path) -> None:
    for name in COPIED:
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/world").symlink_to(world)
    with tarfile.open(world / "val/videos/shard-00000.tar") as tar:
        video = next(member for member in tar if member.name.endswith(".mp4"))
        (tmp_path / "a.mp4").write_bytes(tar.extractfile(video).read())  # type: ignore[union-attr]
    program = tmp_path / "bin/timeviper"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m timeviper.cli "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PATH": path}
    blocks = BLOCK.findall(SECTIONS[title])
    assert blocks[-1][0] == "run", f"{title}: no command shows that it works"
    for what, where, text in blocks:
        if what != "run":
            apply(tmp_path, what, where, text)
            continue
        done = subprocess.run(
            ["bash", "-euc", text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_every_row_of_the_table_has_an_example() -> None:
    named = re.findall(r"\[below\]\(#([\w-]+)\)", PAGE)
    assert sorted(named) == sorted(title.lower().replace(" ", "-") for title in SECTIONS)

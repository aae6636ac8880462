"""Lost samples are counted over all ranks, named, replaced by the same ones every time, and stop the run together."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from tree import ROOT, Run

from timeviper.config.load import load_recipe
from timeviper.datamodules.build import build_plan, load_index, pack_format
from timeviper.datamodules.reader import PackReader
from timeviper.tokenizer import Tokenizer

STEPS = 3


@pytest.fixture(scope="module")
def spoilt(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of the small world, every 8th of which is overwritten with zeros."""
    folder = tmp_path_factory.mktemp("spoilt") / "images"
    shutil.copytree(world / "train/images", folder)
    for shard in load_index(folder):
        with (folder / shard.name).open("r+b") as file:
            for record in shard.samples[::8]:
                offset, size, *_ = next(m for name, m in record.members.items() if name != "json")
                file.seek(offset)
                file.write(b"\0" * size)
    return folder


def options(spoilt: Path, world: Path, out: Path) -> list[str]:
    return [
        "recipes/tiny/stage0_tower.yaml",
        f"out={out}",
        f"train.steps={STEPS}",
        f"data.sources.images.shards={spoilt}",
        f"data.val.images.shards={world / 'val/images'}",
        "data.tokens_per_pack=400",
        "data.packs_per_step=2",
        "data.workers=0",
        "train.validate_every=0",
        "train.validate_samples=4",
        "log.every=2",
    ]


def test_stand_ins_are_always_the_same(spoilt: Path, world: Path, tmp_path: Path) -> None:
    path, *overrides = options(spoilt, world, tmp_path)
    recipe, tokenizer = load_recipe(ROOT / path, overrides), Tokenizer.load("")
    reader = PackReader(tokenizer, pack_format(recipe))
    runs = [[reader[step] for step in islice(build_plan(recipe, tokenizer).steps(), STEPS)] for _ in range(2)]
    first, again = ([(p.keys, b.skipped, b.replaced) for b in run for p in b.packs] for run in runs)
    assert first == again
    lost, replaced = (sum(len(b.skipped) for b in runs[0]), sum(sum(b.replaced.values()) for b in runs[0]))
    assert lost > 0
    assert 0 < replaced <= lost


def test_two_ranks_count_and_stop_together(spoilt: Path, world: Path, tmp_path: Path, cli: Run) -> None:
    one = cli("train", *options(spoilt, world, tmp_path / "one"), "data.max_skipped=0.5")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]

    def two(name: str, budget: float) -> subprocess.CompletedProcess[str]:
        command = [*torchrun, "-m", "timeviper.cli", "train", *options(spoilt, world, tmp_path / name)]
        return subprocess.run(
            [*command, f"data.max_skipped={budget}"], cwd=ROOT, capture_output=True, text=True, timeout=300
        )

    count = r"samples used: images (\d+); skipped: (\d+); replaced: (\d+)"
    found = re.search(count, one.stdout)
    assert found
    assert all(int(n) > 0 for n in found.groups())
    within = two("within", 0.5)
    assert within.returncode == 0, within.stderr
    assert re.findall(count, within.stdout) == [found.groups()]
    beyond = two("beyond", 0.01)
    assert beyond.returncode
    assert "samples could not be used, more than data.max_skipped=0.01" in beyond.stderr
    assert re.search(r"  images/shard-0\d+.tar/\S+#\d: ", beyond.stderr)

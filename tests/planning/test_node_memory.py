"""Host memory of a node: the figures of loaders, against what steps really hold, and the refusal before a start."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from tree import ROOT
from video_helpers import write_clip

from timeviper.config import Recipe, SourceConfig
from timeviper.config.load import load_recipe
from timeviper.datamodules.build import build_plan, load_sources, pack_format
from timeviper.datamodules.reader import PackReader
from timeviper.datamodules.shards import folder
from timeviper.datamodules.shards.column_file import FILE, HEADER
from timeviper.datamodules.shards.index import index_shards
from timeviper.datamodules.shards.pool import write_shards
from timeviper.errors import ConfigError
from timeviper.planning.node import (
    PROCESS,
    Shared,
    check_node_memory,
    image_size,
    index_needs,
    loader_needs,
    node_line,
)
from timeviper.tokenizer import Tokenizer


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    talk = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "bars"}]
    clips = [write_clip(tmp_path / f"{i}.mp4", 10 + 5 * i) for i in range(4)]
    write_shards([{"__key__": p.stem, "mp4": p, "json": {"messages": talk}} for p in clips], tmp_path / "shards")
    settings = ["data.tokens_per_pack=300", "data.packs_per_step=4", "data.workers=3", "data.prefetch_gb=0.5"]
    made = load_recipe(ROOT / "recipes/tiny/stage2_instruct.yaml", settings)
    made.data.sources = {"clips": SourceConfig(shards=str(tmp_path / "shards"))}
    return made


def test_a_step_holds_what_is_told(recipe: Recipe) -> None:
    tokenizer = Tokenizer.load(recipe.model.tokenizer)
    plan = build_plan(recipe, tokenizer)
    needs = loader_needs(recipe, plan, ranks=1)
    reader = PackReader(tokenizer, pack_format(recipe))
    steps = [reader[step] for step in islice(plan.steps(), 4)]
    real = sum(t.nbytes for step in steps for pack in step.packs for t in pack.tensors().values()) / len(steps)
    assert 0.95 * real < needs["step"] < 1.05 * real
    assert (needs["ahead"], needs["processes"]) == (0.5e9, 3 * PROCESS)
    assert needs["pack"] < needs["step"] < 4 * needs["pack"]
    assert loader_needs(recipe, plan, ranks=4)["step"] < 0.5 * needs["step"]
    recipe.data.workers = 0
    assert loader_needs(recipe, plan, ranks=1).keys() == {"index", "step"}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*/stage*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_keep_their_own_bound(path: Path) -> None:
    """Even two of their longest samples: else each would be read alone, with more than the bound says."""
    recipe = load_recipe(path)
    frames = [recipe.data.frames.max_frames, *(phase.max_frames or 0 for phase in recipe.train.phases.values())]
    assert 2 * max(frames) * 3 * image_size(recipe) ** 2 <= recipe.data.prefetch_gb * 1e9


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"ahead": 6e9, "step": 1e9, "processes": 1e9}, "data.prefetch_gb"),
        ({"ahead": 1e9, "step": 6e9, "processes": 1e9}, "data.tokens_per_pack"),
        ({"ahead": 1e9, "step": 1e9, "processes": 6e9}, "data.workers"),
        ({"index": 6e9, "step": 1e9, "processes": 1e9}, "data.sources"),
    ],
)
def test_what_cannot_fit_is_refused_with_what_is_largest(settings: dict[str, float], key: str) -> None:
    recipe = load_recipe(ROOT / "recipes/nano9b/stage2_instruct.yaml")
    check_node_memory(recipe, settings, 8, free=64e9)
    with pytest.raises(ConfigError) as error:
        check_node_memory(recipe, settings, 8, free=63.9e9)
    (problem,) = error.value.problems
    assert problem.key == key
    assert "8 ranks: 64.00 GB" in problem.message
    assert "63.90 GB free" in problem.message
    with pytest.raises(ConfigError, match="offloaded 8"):
        check_node_memory(recipe, settings, 8, offloaded=1e9, free=64e9)


def test_the_line_names_what_there_is() -> None:
    said = node_line({"index": 0.1e9, "step": 2e9, "ahead": 1e9}, 2, 0.5e9, Shared(index=0.3e9, shards=12e9))
    assert said == (
        "host memory of a node with 2 ranks: 7.50 GB (index 0.50, steps at hand 4.00, "
        "read ahead (data.prefetch_gb) 2.00, offloaded 1.00); 12.00 GB more would hold all shards in the page cache"
    )


@pytest.mark.parametrize("small", [1 << 24, 0], ids=["in memory", "mapped"])
def test_an_index_is_counted_where_it_lies(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    """That of each rank once for each of its sources; one in a file, and the shards, once for a node."""
    monkeypatch.setattr(folder, "SMALL", small)
    place = Path(recipe.data.sources["clips"].shards)
    index_shards(place)
    recipe.data.sources |= {"again": replace(recipe.data.sources["clips"], types="chat")}
    recipe.data.cache = str(place / "cache")
    sources = load_sources(recipe.data.sources, recipe.data.cache).values()
    own, shared = index_needs(sources)
    columns = (place / FILE).stat().st_size - HEADER
    rows = 4 * 4  # of the source that does not take all types
    assert own == pytest.approx(rows + (2 * columns if small else 0), abs=64)
    assert shared.index == pytest.approx(0 if small else columns, abs=64)
    assert shared.shards == sum(tar.stat().st_size for tar in place.glob("*.tar"))

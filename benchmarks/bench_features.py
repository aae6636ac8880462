"""Steps of a stage from videos and from stored features: CPU time of reading, of the tower, and of the whole step.

Both kinds are trained in turns, in one process and thread without loader processes; the first steps of each turn are
not counted. CPU seconds, because other work on the machine would show in wall seconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from timeviper.config import Recipe
from timeviper.datamodules.build import build_plan, load_sources, pack_format
from timeviper.datamodules.reader import PackReader
from timeviper.datamodules.shards.schema import FEATURES
from timeviper.features.write import write_features
from timeviper.model.viper import TimeViper
from timeviper.tokenizer import Tokenizer
from timeviper.weights.export import build_model

WARM = 2  # steps


@dataclass
class Turn:
    """CPU seconds of each step, and its frames."""

    reading: list[float]
    tower: list[float]
    step: list[float]
    frames: list[int]


def table(recipe: Recipe, steps: int, runs: int, cache: Path) -> list[str]:
    """Lines of the page; features are written into `cache` first, unless they are there."""
    torch.set_num_threads(1)
    recipe.data.val = {}
    out = cache / "features"
    if not write_features(recipe, out, [], workers=0):
        raise KeyboardInterrupt
    stored = dict(line.split("=", 1) for line in (out / "overrides.txt").read_text().split())
    sources = {
        name: replace(source, shards=stored[f"data.sources.{name}.shards"])
        for name, source in recipe.data.sources.items()
    }
    kinds = {"videos": recipe, "features": replace(recipe, data=replace(recipe.data, sources=sources))}
    turns = {kind: Turn([], [], [], []) for kind in kinds}
    for _ in range(runs):
        for kind, one in kinds.items():
            _train(one, steps, turns[kind])
    assert turns["videos"].frames == turns["features"].frames
    frames, size = statistics.mean(turns["videos"].frames), pack_format(recipe).image_size
    lines = [
        f"{recipe.name}: {steps} steps, {runs} turns of each, {frames:.0f} frames a step on average; 1 thread, "
        f"{recipe.parallel.param_dtype}. Median CPU ms a step.",
        "",
        "| from | reading | tower and merging | whole step |",
        "|---|---|---|---|",
    ]
    for kind, turn in turns.items():
        cells = (f"{statistics.median(column) * 1e3:.0f}" for column in (turn.reading, turn.tower, turn.step))
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    records = [r for s in load_sources(sources).values() for shard in s.shards for r in shard.samples]
    stored_bytes = sum(r.members[FEATURES][1] for r in records if r.fingerprint)
    config = recipe.data.frames
    count = sum(min(r.frames, max(round(r.duration * config.fps), 1), config.max_frames) for r in records)
    lines += ["", f"Bytes a frame: {stored_bytes / count:,.0f} stored, {3 * size**2:,} as decoded pixels."]
    return lines


def _train(recipe: Recipe, steps: int, turn: Turn) -> None:
    tokenizer = Tokenizer.load(recipe.model.tokenizer)
    reader, model = PackReader(tokenizer, pack_format(recipe)), build_model(recipe)
    assert isinstance(model, TimeViper)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-5)
    for number, plan in enumerate(islice(build_plan(recipe, tokenizer).steps(), WARM + steps)):
        begun = time.process_time()
        batch = reader[plan]
        read = time.process_time()
        with _timed_towers(model) as towers:
            for pack in batch.packs:
                out = model(pack)
                (out.loss_sum / max(out.num_labels, 1)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if number >= WARM:
            turn.reading.append(read - begun)
            turn.tower.append(sum(towers))
            turn.step.append(time.process_time() - begun)
            turn.frames.append(sum(pack.num_frames for pack in batch.packs))


@contextmanager
def _timed_towers(model: TimeViper) -> Iterator[list[float]]:
    """CPU seconds that the towers take while this lasts, call by call."""
    begun: list[float] = []
    taken: list[float] = []
    hooks = []
    for tower in model.towers.values():
        hooks.append(tower.register_forward_pre_hook(lambda *_: begun.append(time.process_time())))
        hooks.append(tower.register_forward_hook(lambda *_: taken.append(time.process_time() - begun.pop())))
    yield taken
    for hook in hooks:
        hook.remove()

"""The loader against the bare decoding of the same frames, its start, and its memory over many epochs.

Bare decoding is `read_video` on the same slices of the same shards, shared out to as many processes, and nothing
else: no json, no text, no packs, nothing sent anywhere. The loader does all of that, and its steps arrive in order.
Both are timed from the moment all processes run; nobody waits for a model.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench_decoding import write_video

from timeviper.config import FramesConfig, Recipe, SourceConfig
from timeviper.datamodules.build import build_plan, cost_model, load_sources, pack_format
from timeviper.datamodules.frames.video import read_video
from timeviper.datamodules.loader import Loader
from timeviper.datamodules.plan import StepPlan, held_out
from timeviper.datamodules.reader import PackReader
from timeviper.datamodules.shards.pool import write_shards
from timeviper.datamodules.shards.tar import SliceFile
from timeviper.pack import StepBatch
from timeviper.tokenizer import Tokenizer

GB = 2.0  # that may be read ahead: more than these steps need


class Clip(NamedTuple):
    """What bare decoding has to know of a medium."""

    shard: str
    offset: int
    size: int
    duration: float | None


class Load:
    """A recipe's data as a benchmark needs it."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        tokenizer = Tokenizer.load(recipe.model.tokenizer)
        self.form = pack_format(recipe)
        self.reader = PackReader(tokenizer, self.form)
        self.plan = build_plan(recipe, tokenizer)
        self.cost = cost_model(recipe, tokenizer)

    def loader(self, plans: list[StepPlan], workers: int) -> Iterator[StepBatch]:
        prefetch = self.recipe.data.prefetch
        return iter(Loader(self.reader, lambda: plans, workers=workers, prefetch=prefetch, prefetch_gb=GB))

    def clips(self, plans: list[StepPlan]) -> list[Clip]:
        """All media of the steps; of a sample with several, none states its own length in the index."""
        found = []
        for item in chain.from_iterable(pack for plan in plans for pack in plan.packs):
            members = {k: v for k, v in item.unit.record.members.items() if k != "json"}
            length = item.unit.record.duration if len(members) == 1 else None
            found += [Clip(item.unit.shard, m.offset, m.size, length or None) for m in members.values()]
        return found


def bare(load: Load, plans: list[StepPlan], workers: int) -> float:
    """Frames a second."""
    context = multiprocessing.get_context("spawn")
    ready, told = context.Barrier(workers), context.SimpleQueue()
    clips = load.clips(plans)
    common = (load.form.image_size, plans[0].frames, ready, told)
    processes = [context.Process(target=_decode, args=(clips[i::workers], *common)) for i in range(workers)]
    for process in processes:
        process.start()
    done = [told.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(frames for frames, _ in done) / max(seconds for _, seconds in done)


def _decode(clips: list[Clip], size: int, frames: FramesConfig, ready: Any, told: Any) -> None:
    ready.wait()
    start, count = time.perf_counter(), 0
    for clip in clips:
        with SliceFile(clip.shard, clip.offset, clip.size) as file:
            count += len(read_video(file, size, frames, clip.duration).times)
    told.put((count, time.perf_counter() - start))


def loaded(load: Load, plans: list[StepPlan], workers: int) -> tuple[float, float]:
    """Frames a second, and seconds to the first step; the steps in which processes start are not counted."""
    start = time.perf_counter()
    batches = load.loader(plans, workers)
    next(batches)
    first = time.perf_counter() - start
    for _ in range(2 * workers):  # one may have started long before the other
        next(batches)
    began, frames, ended = time.perf_counter(), 0, 0.0
    for batch in islice(batches, len(plans) - 2 * workers * load.recipe.data.prefetch):
        frames += sum(pack.num_frames for pack in batch.packs)
        ended = time.perf_counter()
    return frames / (ended - began), first


def speed_rows(load: Load, steps: int, runs: int) -> list[str]:
    """The table of speeds, both sides in turns."""
    begun = [phase.start for phase in load.recipe.train.phases.values()]
    plans = list(islice(load.plan.steps(max(begun, default=0)), steps))  # of the last phase, which has most frames
    samples = sum(len(pack) for plan in plans for pack in plan.packs)
    frames = sum(item.num_frames for plan in plans for pack in plan.packs for item in pack)
    lines = [
        f"{steps} steps of {load.recipe.name}: {samples:,} samples, {frames:,} frames of {load.form.image_size} px, "
        f"{frames / samples:.1f} of each. Median of {runs} runs, both in turns.",
        "",
        "| processes | bare: frames/s | loader: frames/s | min - max | of bare | first step after |",
        "|---|---|---|---|---|---|",
    ]
    for workers in (1, 2):
        plain: list[float] = []
        ours: list[tuple[float, float]] = []
        for _ in range(runs):
            plain.append(bare(load, plans, workers))
            ours.append(loaded(load, plans, workers))
        rates = [rate for rate, _ in ours]
        share = statistics.median(rate / base for rate, base in zip(rates, plain))
        lines.append(
            f"| {workers} | {statistics.median(plain):,.0f} | {statistics.median(rates):,.0f} "
            f"| {min(rates):,.0f} - {max(rates):,.0f} | {share:.2f} | {statistics.median(f for _, f in ours):.1f} s |"
        )
        print(lines[-1], flush=True)
    return lines


def memory_rows(load: Load, shards: str, epochs: int) -> list[str]:
    """Memory after each of some epochs over a small set, in one loader."""
    sources = load_sources({"small": SourceConfig(shards=shards)})
    epoch = held_out(sources, load.recipe.data, load.cost, 0, 1)
    lines = [
        f"Memory over {epochs} epochs of {shards} ({len(sources['small']):,} conversations in {len(epoch)} steps), "
        "in one loader of 2 processes. Each process's own memory and its part of what is shared.",
        "",
        "| after epoch | training process: MB | loader processes: MB | open files |",
        "|---|---|---|---|",
    ]
    batches = load.loader(epoch * epochs, 2)
    for number in range(1, epochs + 1):
        for _ in range(len(epoch)):
            next(batches)
        if number in (1, 2, 3, 5, 10, 15, 20):
            own = _resident_mb(os.getpid())
            files = len(list(Path("/proc/self/fd").iterdir()))
            lines.append(f"| {number} | {own:.0f} | {resident_mb() - own:.0f} | {files} |")
            print(lines[-1], flush=True)
    return lines


def resident_mb() -> float:
    """Resident memory of this process and its children."""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]
    return sum(map(_resident_mb, pids))


def _resident_mb(pid: int) -> float:
    """Resident memory of a process, shared pages divided among those that have them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def everyday(recipe: Recipe, cache: Path) -> Recipe:
    """The recipe on videos of three minutes (320 x 240, H.264, a keyframe every two seconds), 64 frames of 224 pixels
    of each, four to a step. Its model is not built."""
    folder = cache / "three_minutes"
    video = write_video(cache / "3min_gop60.mp4", 3.0, 60)
    talk = [{"role": "user", "content": "What happens?"}, {"role": "assistant", "content": "Numbers count up."}]
    samples = [{"__key__": f"{i:02d}", "mp4": video, "json": {"messages": talk}} for i in range(16)]
    write_shards(samples, folder)
    recipe = replace(recipe, name="three_minutes", train=replace(recipe.train, phases={}))
    recipe.data = replace(recipe.data, sources={"videos": SourceConfig(shards=str(folder))}, tokens_per_pack=1300)
    recipe.data.frames = FramesConfig(fps=1.0, max_frames=64)
    for tower in recipe.model.towers.values():
        if tower:
            tower.image_size = 224
    return recipe


def table(recipes: list[Recipe], steps: int, runs: int, small: str, epochs: int, cache: Path) -> list[str]:
    """The lines of a page; memory is watched with the first recipe."""
    torch.set_num_threads(1)
    loads = [Load(recipe) for recipe in recipes]
    lines = [line for load in loads for line in [*speed_rows(load, steps, runs), ""]]
    lines += [*speed_rows(Load(everyday(deepcopy(recipes[0]), cache)), steps // 4, runs), ""]
    return [*lines, *memory_rows(loads[0], small, epochs)]

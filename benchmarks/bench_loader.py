"""The loader against the bare decoding of the same frames, its start, and its memory over many epochs.

Bare decoding is `read_video` on the same slices of the same shards, shared out to as many processes, and nothing
else: no json, no text, no packs, nothing sent anywhere. The loader does all of that, and its steps arrive in order.
Both are timed from the moment all processes run; nobody waits for a model. Of short clips there is also a loop over
PyAV as one writes it by hand, which reads a clip from its start and takes the frames that are due.

Seconds of CPU are those of all processes, the training process with its plan and its packs among them: what counts
where others have work as well.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from bench_decoding import write_video

from timeviper.config import FramesConfig, Recipe, SourceConfig
from timeviper.datamodules.build import build_plan, cost_model, load_sources, pack_format
from timeviper.datamodules.frames.video import read_video, sample_times
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

    @property
    def start(self) -> int:
        """Of the last phase, which has most frames."""
        return max((phase.start for phase in self.recipe.train.phases.values()), default=0)

    def steps(self, count: int) -> Iterator[StepPlan]:
        """Planned as they are asked for, as in training."""
        return islice(self.plan.steps(self.start), count)

    def loader(self, plans: Iterable[StepPlan], workers: int) -> Iterator[StepBatch]:
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


class Speed(NamedTuple):
    frames: float
    """A second."""
    cpu: float
    """Seconds a sample."""
    first: float = 0.0
    """Seconds until the first step is there."""


def bare(load: Load, plans: list[StepPlan], workers: int, decode: Callable[[Clip, int, FramesConfig], int]) -> Speed:
    """`decode` gives the frames of a clip, and says how many there were."""
    context = multiprocessing.get_context("spawn")
    ready, told = context.Barrier(workers), context.SimpleQueue()
    clips = load.clips(plans)
    common = (load.form.image_size, plans[0].frames, decode, ready, told)
    processes = [context.Process(target=_decode, args=(clips[i::workers], *common)) for i in range(workers)]
    for process in processes:
        process.start()
    done = [told.get() for _ in processes]
    for process in processes:
        process.join()
    frames, seconds, cpu = zip(*done)
    return Speed(sum(frames) / max(seconds), sum(cpu) / len(clips))


def _decode(clips: list[Clip], size: int, frames: FramesConfig, decode: Any, ready: Any, told: Any) -> None:
    decode(clips[0], size, frames)  # what is made once
    ready.wait()
    start, used = time.perf_counter(), time.process_time()
    count = sum(decode(clip, size, frames) for clip in clips)
    told.put((count, time.perf_counter() - start, time.process_time() - used))


def by_reader(clip: Clip, size: int, frames: FramesConfig) -> int:
    with SliceFile(clip.shard, clip.offset, clip.size) as file:
        return len(read_video(file, size, frames, clip.duration).times)


def by_hand(clip: Clip, size: int, frames: FramesConfig) -> int:
    with open(clip.shard, "rb") as shard:
        shard.seek(clip.offset)
        data = shard.read(clip.size)
    with av.open(io.BytesIO(data), "r") as file:
        stream = file.streams.video[0]
        stream.thread_type = "NONE"
        due = sample_times(clip.duration or float(file.duration or 0) / av.time_base, frames, stream.frames or None)
        pixels, count = np.empty((len(due), size, size, 3), np.uint8), 0
        half = 0.5 / float(stream.average_rate or 25)
        for frame in file.decode(stream):
            if frame.time is not None and frame.time + half >= due[count]:
                shape = {"width": size, "height": size, "format": "rgb24", "interpolation": "BILINEAR"}
                pixels[count] = frame.to_ndarray(**shape)
                count += 1
                if count == len(due):
                    break
    return count


def loaded(load: Load, steps: int, workers: int) -> Speed:
    """The steps in which processes start are not counted."""
    start = time.perf_counter()
    batches = load.loader(load.steps(steps), workers)
    next(batches)
    first = time.perf_counter() - start
    for _ in range(2 * workers):  # one may have started long before the other
        next(batches)
    began, used, frames, samples, ended = time.perf_counter(), _cpu(), 0, 0, 0.0
    for batch in islice(batches, steps - 2 * workers * load.recipe.data.prefetch):
        frames += sum(pack.num_frames for pack in batch.packs)
        samples += sum(len(pack.lengths) for pack in batch.packs)
        ended = time.perf_counter()
        cpu = _cpu()
    return Speed(frames / (ended - began), (cpu - used) / samples, first)


def _cpu() -> float:
    """Seconds of CPU that this process and its children have used."""
    ticks = 0
    for child in multiprocessing.active_children():
        ticks += sum(map(int, Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def speed_rows(load: Load, steps: int, runs: int, short: bool) -> list[str]:
    """The table of speeds, all in turns. short: beside a loop by hand as well."""
    plans = [*load.steps(steps)]
    samples = sum(len(pack) for plan in plans for pack in plan.packs)
    frames = sum(item.num_frames for plan in plans for pack in plan.packs for item in pack)
    ways = {"by hand": by_hand, "read_video": by_reader} if short else {"read_video": by_reader}
    lines = [
        f"{steps} steps of {load.recipe.name}: {samples:,} samples, {frames:,} frames of {load.form.image_size} px, "
        f"{frames / samples:.1f} of each. Median of {runs} runs, all in turns.",
        "",
        "| processes | "
        + "".join(f"{way}: frames/s, CPU ms a sample | " for way in [*ways, "loader"])
        + "".join(f"loader of {way}: by the clock, by CPU | " for way in ways)
        + "first step after |",
        "|---" * (3 + 2 * len(ways)) + "|",
    ]
    for workers in (1, 2):
        found: dict[str, list[Speed]] = {}
        for _ in range(runs):
            for way, decode in ways.items():
                found.setdefault(way, []).append(bare(load, plans, workers, decode))
            found.setdefault("loader", []).append(loaded(load, steps, workers))
        speeds = [f"{_median(those, 0):,.0f}, {1e3 * _median(those, 1):.2f}" for those in found.values()]
        shares = [
            f"{statistics.median(a.frames / b.frames for a, b in zip(found['loader'], found[way])):.2f}, "
            f"{statistics.median(b.cpu / a.cpu for a, b in zip(found['loader'], found[way])):.2f}"
            for way in ways
        ]
        lines.append(f"| {workers} | {' | '.join([*speeds, *shares])} | {_median(found['loader'], 2):.1f} s |")
        print(lines[-1], flush=True)
    return lines


def _median(speeds: list[Speed], number: int) -> float:
    return statistics.median(speed[number] for speed in speeds)


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


def everyday(recipe: Recipe, cache: Path, name: str, seconds: float, frames: int) -> Recipe:
    """The recipe on videos of so many seconds (320 x 240, H.264, a keyframe every two seconds), so many frames of 224
    pixels of each, in packs of 1,300 tokens. Its model is not built."""
    folder = cache / name
    if not folder.exists():
        video = write_video(cache / f"{name}.mp4", seconds / 60, 60)
        talk = [{"role": "user", "content": "What happens?"}, {"role": "assistant", "content": "Numbers count up."}]
        write_shards([{"__key__": f"{i:02d}", "mp4": video, "json": {"messages": talk}} for i in range(16)], folder)
    recipe = replace(recipe, name=name, train=replace(recipe.train, phases={}))
    recipe.data = replace(recipe.data, sources={"videos": SourceConfig(shards=str(folder))}, tokens_per_pack=1300)
    recipe.data.frames = FramesConfig(fps=1.0, max_frames=frames)
    for tower in recipe.model.towers.values():
        if tower:
            tower.image_size = 224
    return recipe


def table(recipes: list[Recipe], steps: int, runs: int, small: str, epochs: int, cache: Path) -> list[str]:
    """The lines of a page; memory is watched with the first recipe."""
    torch.set_num_threads(1)
    first, *others = [Load(recipe) for recipe in recipes]
    lines = [*speed_rows(first, steps, runs, short=True), ""]
    clips = Load(everyday(deepcopy(recipes[0]), cache, "eight_seconds", 8.0, 8))
    lines += [*speed_rows(clips, steps // 4, runs, short=True), ""]
    long = Load(everyday(deepcopy(recipes[0]), cache, "three_minutes", 180.0, 64))
    for load, count in (*((load, steps) for load in others), (long, steps // 4)):
        lines += [*speed_rows(load, count, runs, short=False), ""]
    return [*lines, *memory_rows(first, small, epochs)]

"""Parts c and e of `bench_gpu.py`: what a training step waits for, and LoRA steps at full size beside their plan.

The model is sharded over one rank as every training is, and a step is what `training/module.py` does: forward and
backward pass of a pack, norm clipping, AdamW.
"""

from __future__ import annotations

import os
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from bench_gpu_measure import Peak, materialise, one, preset
from bench_gpu_page import Case, Part, Row, Setting
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

import timeviper
from timeviper.config import ParallelConfig, Recipe
from timeviper.config.load import load_recipe
from timeviper.config.shape import PackShape, tokens_per_frame
from timeviper.kernels import dispatch
from timeviper.model import lora
from timeviper.model.flops import model_flops
from timeviper.model.parts import is_adapter
from timeviper.model.viper import TimeViper
from timeviper.pack import IGNORE, Kind, Pack
from timeviper.parallel import ShardedModel, parallelize
from timeviper.planning.hardware import Assumptions, gpu_of
from timeviper.planning.memory import PeakMemory, peak_memory
from timeviper.planning.parameters import sharded_parameters
from timeviper.planning.roofline import step_time
from timeviper.training.optim import build_optimizer
from timeviper.training.step import accumulate
from timeviper.weights.export import meta_model

PACKAGE = Path(timeviper.__file__).parent
TEXT, LABELS = 192, 96  # tokens of the sample, and those of them that are supervised, as plans assume
FRAMES = (1024, 10_240)
PIECE = 16_384  # tokens of `parallel.tokens_per_piece`, where there is such a setting
SMALL = 4  # what the hybrid of part c is divided by: heads of 16, which every kernel takes
SMALL_FRAMES = 64


def make_pack(recipe: Recipe, frames: int, device: str) -> Pack:
    """One sample of random frames with a question behind them, as a loader hands it over."""
    (tower,), context, answer = recipe.model.towers.values(), 16, LABELS
    vision = frames * tower.tokens
    counts = torch.tensor([context, vision, TEXT - context - answer, answer])
    kind = torch.arange(4, dtype=torch.uint8).repeat_interleave(counts)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(recipe.model.decoder.vocab_size, (len(kind),), generator=generator)
    ids = ids.masked_fill(kind == Kind.VISION, 0)
    labels = ids.roll(-1).masked_fill(kind != Kind.ANSWER, IGNORE)
    shape = (frames, 3, tower.image_size, tower.image_size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device).cpu()  # fast where it can be
    pack = Pack(ids, labels, kind, [len(kind)], pixels, torch.arange(frames, dtype=torch.float64), [frames])
    return pack.pin_memory() if device == "cuda" else pack


@contextmanager
def one_rank(device: str) -> Iterator[None]:
    """A process group of this process alone."""
    kind = "gloo" if device == "cpu" else "nccl"
    dist.init_process_group(kind, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Trainee:
    """A stage's model with random weights, made where it is trained, and its optimizer."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        """Frozen matrices are short from the start where the recipe wants them so."""
        self.recipe, self.device = recipe, torch.device(device)
        dispatch.configure(**vars(recipe.model.kernel))
        frozen = {name for name, p in meta_model(recipe).named_parameters() if not p.requires_grad}
        with torch.device("meta"):
            model = TimeViper(recipe.model)
        for name, p in model.named_parameters():
            if name in frozen and p.ndim > 1:
                p.data = p.data.to(getattr(torch, recipe.parallel.frozen_dtype))
        materialise(model, device)
        lora.attach(model, recipe.model.lora)
        for name, p in model.named_parameters():
            if is_adapter(name):
                torch.nn.init.normal_(p, std=p.shape[1] ** -0.5) if name.endswith("lora_A") else torch.nn.init.zeros_(p)
        model.freeze(recipe.train.trainable)
        self.model: ShardedModel = parallelize(model, init_device_mesh(device, (1,)), recipe.parallel)
        self.optimizer = build_optimizer(self.model, recipe.optim)

    def step(self, pack: Pack) -> None:
        num_labels = torch.tensor(float(pack.num_labels), device=self.device)
        accumulate(self.model, [pack], num_labels, 1, self.device)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def stage3(setting: Setting, *overrides: str) -> Recipe:
    """The long stage of nano9b, with the sizes of the setting."""
    recipe = load_recipe("nano9b/stage3_long", overrides)
    recipe.model = replace(
        preset("nano9b", setting), transv=recipe.model.transv, lora=recipe.model.lora, kernel=recipe.model.kernel
    )
    return recipe


# ---- c: waits -------------------------------------------------------------------------------------------


def wait_cases(setting: Setting) -> list[Case]:
    ways: dict[str, Callable[[Trainee, Pack], Iterator[Row]]] = {"sync debug mode": _warned, "profiler": _profiled}
    if setting.device == "cpu":
        ways = {"operations that would wait": _would_wait}
    return [Case(name, partial(_waits, setting, way)) for name, way in ways.items()]


def _waits(setting: Setting, way: Callable[[Trainee, Pack], Iterator[Row]]) -> Iterator[Row]:
    recipe = stage3(replace(setting, divide=max(SMALL, setting.divide)))
    pack = make_pack(recipe, SMALL_FRAMES, setting.device)
    with one_rank(setting.device):
        trainee = Trainee(recipe, setting.device)
        trainee.step(pack)  # what is made once
        yield from way(trainee, pack)


def _here() -> str:
    """The line of this project that is at work."""
    for frame in reversed(traceback.extract_stack()):
        if Path(frame.filename).is_relative_to(PACKAGE):
            return f"{os.path.relpath(Path(frame.filename).resolve(), PACKAGE.parent.resolve())}:{frame.lineno}"
    return "elsewhere, such as autograd's own thread or the optimizer"


def _counted(way: str, places: Counter[str]) -> Iterator[Row]:
    yield {"counted by": way, "where": "all", "times": sum(places.values())}
    for where, times in places.most_common():
        yield {"counted by": way, "where": where, "times": times}


def _warned(trainee: Trainee, pack: Pack) -> Iterator[Row]:
    """Every call that waits for the device warns."""
    places: Counter[str] = Counter()

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchronizing" in str(message):
            places[_here()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainee.step(pack)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    yield from _counted("sync debug mode", places)


def _profiled(trainee: Trainee, pack: Pack) -> Iterator[Row]:
    """Calls of the driver that wait, and how many kernels are launched beside."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        trainee.step(pack)
        torch.cuda.synchronize()  # one of those that are counted
    for event in profile.key_averages():
        if any(word in event.key for word in ("Synchronize", "cudaMemcpy", "LaunchKernel")):
            yield {"counted by": "profiler", "where": event.key, "times": event.count}


class _HostReads(TorchDispatchMode):
    """Operations whose result the host reads, or whose size it must know."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "bincount", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.NAMES:
            self.places[f"{_here()} ({name})"] += 1
        return func(*args, **(kwargs or {}))


def _would_wait(trainee: Trainee, pack: Pack) -> Iterator[Row]:
    with _HostReads() as seen:
        trainee.step(pack)
    yield from _counted("operations that would wait", seen.places)


# ---- e: LoRA steps --------------------------------------------------------------------------------------

LORA = ("model.lora.rank=16", "model.lora.targets=[mamba,attention,mlp]", "parallel.frozen_dtype=bfloat16")


def lora_cases(setting: Setting) -> list[Case]:
    counts = dict.fromkeys(max(n // setting.divide, 2) for n in FRAMES)
    ways = {"": ()}
    if any(f.name == "tokens_per_piece" for f in fields(ParallelConfig)):
        size = max(PIECE // setting.divide, 256)
        ways = {", in pieces": (f"parallel.tokens_per_piece={size}",), "": ("parallel.tokens_per_piece=0",)}
    return [
        Case(f"{frames:,} frames{way}", partial(_lora, setting, frames, f"{frames:,} frames{way}", more))
        for frames in counts
        for way, more in ways.items()
    ]


@dataclass(frozen=True)
class Planned:
    memory: PeakMemory
    tflop: float
    """Model FLOPs."""
    seconds: float | None
    peak_tflops: float | None


def plan(recipe: Recipe, frames: int, device: str) -> Planned:
    units, shape = sharded_parameters(meta_model(recipe), recipe.parallel), PackShape((frames,), (TEXT,), LABELS)
    memory = peak_memory(recipe, units, shape, 1, 1, "cpu" if device == "cpu" else "cuda")
    flops = sum(f.total for f in model_flops(recipe.model, shape, recipe.train.trainable).values())
    gpu = None if device == "cpu" else gpu_of(torch.cuda.get_device_name())
    seconds = step_time(recipe, units, [shape], 1, 1, gpu, Assumptions()).seconds if gpu else None
    return Planned(memory, flops / 1e12, seconds, gpu.bf16_tflops if gpu else None)


def _lora(setting: Setting, frames: int, name: str, more: tuple[str, ...]) -> Iterator[Row]:
    device = setting.device
    recipe = stage3(setting, *LORA, *more)
    planned = plan(recipe, frames, device)
    length = frames * tokens_per_frame(recipe.model) + TEXT
    row: Row = {"sample": name, "tokens": length, "planned GB": planned.memory.peak.bytes / 1e9}
    row |= {"fullest moment": planned.memory.peak.name, "planned s": planned.seconds, "model TFLOP": planned.tflop}
    room = inf if device == "cpu" else torch.cuda.get_device_properties(0).total_memory / 1e9
    if row["planned GB"] > room:
        yield row | {"note": f"not run: planned for more than the {room:.0f} GB of this device"}
        return
    pack = make_pack(recipe, frames, device)
    assert PackShape.of(pack) == PackShape((frames,), (TEXT,), LABELS)
    with one_rank(device), Peak(device) as peak:
        trainee = Trainee(recipe, device)
        first, second = (one(lambda: trainee.step(pack), device) / 1e3 for _ in range(2))
    measured = peak.extra_gb if device == "cpu" else peak.gb  # a CPU's process also holds Python and its libraries
    row |= {"measured GB": measured, "measured / planned": measured / row["planned GB"]}
    row |= {"first step s": first, "second step s": second, "TFLOP/s": planned.tflop / second}
    if planned.peak_tflops:
        row["MFU %"] = 100 * planned.tflop / second / planned.peak_tflops
    yield row


PARTS = [
    Part(
        "c",
        "What a training step waits for",
        f"The second step of stage 3 with widths of nano9b / {SMALL} (a trial: less), one sample of {SMALL_FRAMES} "
        "frames, published TransV; projector, decoder and transfers learn. Places are lines of this project.",
        70,
        {"counted by": "", "where": "", "times": ",d"},
        wait_cases,
    ),
    Part(
        "e",
        "LoRA steps of stage 3 beside their plan",
        "`nano9b/stage3_long` with "
        + ", ".join(f"`{o}`" for o in LORA)
        + f"; one sample of {TEXT} text tokens and random frames, "
        "encoded by the tower in every step. Planned: as `timeviper plan`, without its reserve, for this sample. "
        "Measured: what torch has allocated at most. MFU by model FLOPs, of the second step.",
        240,
        {
            "sample": "",
            "tokens": ",d",
            "planned GB": ".2f",
            "measured GB": ".2f",
            "measured / planned": ".2f",
            "fullest moment": "",
            "planned s": ".2f",
            "first step s": ".2f",
            "second step s": ".2f",
            "model TFLOP": ",.1f",
            "TFLOP/s": ",.1f",
            "MFU %": ".1f",
        },
        lora_cases,
    ),
]

"""A finished run as people want to see it: held-out samples with what TransV left of each frame, and what was written.

Of each sample one forward pass gives the loss of the right answer, one prefill and greedy decoding the model's own.
Letters: F frames, T tokens a frame.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from timeviper.analysis.subject import Subject
from timeviper.datamodules.cost import Item
from timeviper.datamodules.when import WHEN, parse_interval
from timeviper.inference.generate import prefill_pack, write
from timeviper.inference.metrics import is_right
from timeviper.pack import Pack

TALL = 72  # pixels of a thumbnail at most
FRAMES = 24  # of a sample that are shown
POOL = 8  # times the samples asked for are looked through for different types of questions


@dataclass(frozen=True)
class Shown:
    """One held-out sample."""

    key: str
    type: str
    question: str
    right: str
    written: str
    correct: bool
    loss: float
    """Nats a token of the right answer."""
    times: list[float]
    """`[F]` seconds of every frame."""
    survivors: dict[str, list[int]]
    """By TransV stage: how many of the T tokens of each frame are left."""
    tokens: int
    """T."""
    truth: tuple[float, float] | None
    """Seconds that the right answer names, of a question that asks when."""
    frames: list[int]
    """Which of the frames are shown,"""
    pixels: list[NDArray[np.uint8]]
    """and their thumbnails `[h, w, 3]`; empty where frames come as stored features."""


def chosen(subject: Subject, count: int) -> list[Item]:
    """`count` samples of as many types of questions as there are, in turn, the same in every run."""
    by_type: dict[str, list[Item]] = defaultdict(list)
    for item in subject.items(count * POOL):
        by_type[item.unit.spec.type].append(item)
    turns = max(map(len, by_type.values()))
    dealt = [items[turn] for turn in range(turns) for _, items in sorted(by_type.items()) if turn < len(items)]
    return sorted(dealt[:count], key=lambda item: item.unit.spec.type)


def show(subject: Subject, items: list[Item], told: Callable[[int], None] = lambda done: None) -> Iterator[Shown]:
    """Each sample, answered. Raises AnalysisError for one that cannot be read."""
    prompts, whole = subject.packs(items, prompt_only=True), subject.packs(items)
    for done, (prompt, pack) in enumerate(zip(prompts, whole), 1):
        yield _shown(subject, prompt, pack)
        told(done)


@torch.inference_mode()
def _shown(subject: Subject, prompt: Pack, pack: Pack) -> Shown:
    model, tokenizer = subject.model, subject.tokenizer
    taught = model(pack)
    start = prefill_pack(model, prompt)
    ids = write(model.decoder, start, subject.recipe.eval.max_new_tokens, stop_ids=tokenizer.stop_ids)[0]
    T, num_frames = model.tokens_per_frame, prompt.num_frames
    survivors = {
        stage: torch.bincount(which.cpu() // T, minlength=num_frames).tolist()
        for stage, (which,) in start.survivors.items()
    }
    written, right, type = tokenizer.decode(ids.tolist()), prompt.answers[0], prompt.types[0]
    frames = _which(survivors, num_frames)
    there = not any(prompt.from_features)
    return Shown(
        key=prompt.keys[0],
        type=type,
        question=subject.question(prompt),
        right=right,
        written=written,
        correct=is_right(type, written, right),
        loss=float(taught.loss_sum) / max(taught.num_labels, 1),
        times=prompt.frame_times.tolist(),
        survivors=survivors,
        tokens=T,
        truth=parse_interval(right) if type == WHEN else None,
        frames=frames,
        pixels=[thumbnail(prompt.frames[i]) for i in frames] if there else [],
    )


def _which(survivors: dict[str, list[int]], count: int) -> list[int]:
    """The frames to show: all of few; of many those with most tokens behind the last stage, or evenly spaced."""
    if count <= FRAMES:
        return list(range(count))
    last = [*survivors.values()][-1] if survivors else []
    if len(set(last)) > 1:
        return sorted(sorted(range(count), key=lambda i: (-last[i], i))[:FRAMES])
    return torch.linspace(0, count - 1, FRAMES).round().long().tolist()


def thumbnail(frame: torch.Tensor) -> NDArray[np.uint8]:
    """A frame uint8 `[3, H, W]` as `[h, w, 3]`, at most TALL pixels high."""
    H, W = frame.shape[1:]
    if H > TALL:
        size = (TALL, max(round(W * TALL / H), 1))
        frame = F.interpolate(frame[None].float(), size, mode="area")[0].round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(frame.permute(1, 2, 0).cpu().numpy())

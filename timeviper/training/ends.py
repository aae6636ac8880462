"""What ends a run from outside, as one sentence for people: other ranks, loader processes, memory."""

from __future__ import annotations

from collections.abc import Iterator

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from timeviper.datamodules.processes import LostLoader
from timeviper.datamodules.remote.patience import StoreUnusable

# What collectives say when another rank has ended: gloo, then NCCL.
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "remote process exited",
    "Watchdog caught collective operation timeout",
)
_MEMORY = ("can't allocate memory", "Cannot allocate memory", "CUDA error: out of memory")


class NoData(OSError):
    """Raised on all ranks alike, before a step is applied: a store gives no data, and the state can be saved."""


def told_by_all(away: str, trainer: pl.Trainer) -> str:
    """What the first of the ranks says that is without data; every rank must call this."""
    said: list[str] = [away]
    if trainer.world_size > 1:
        said = [""] * trainer.world_size
        dist.all_gather_object(said, away)
    return next(filter(None, said), "")


def foreseen(error: BaseException) -> str | None:
    """What has happened and what to do about it; None for what nobody foresaw, which deserves its traceback."""
    for seen in chain(error):  # Lightning may fall over what is left of it, on its way out
        if told := _foreseen(seen):
            return told
    return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came up with or from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _foreseen(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, NoData | StoreUnusable):
        return f"{text}."
    if isinstance(error, LostLoader):
        return " ".join([text, *getattr(error, "__notes__", [])])
    if isinstance(error, torch.OutOfMemoryError) or any(words in text for words in _MEMORY):
        return (
            f"out of memory ({text.splitlines()[0]}). Smaller packs (data.tokens_per_pack), "
            "parallel.activation_checkpointing=all, more ranks or LoRA need less; `timeviper plan` tells how much each."
        )
    if isinstance(error, RuntimeError) and (lost := next((words for words in _LOST if words in text), None)):
        return (
            f"another rank is gone, or does not answer ({lost}). What ended it stands in its own output, and the "
            "launcher's report names the first rank that failed."
        )
    return None

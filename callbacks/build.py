"""All callbacks of a stage in the order in which they act: the only place that knows it.

Those that a recipe may switch off, and a person's own, are there as `callbacks` in the recipe says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger

from timeviper.callbacks.checkpoints import Checkpoints
from timeviper.callbacks.curriculum import Curriculum
from timeviper.callbacks.export import Export
from timeviper.callbacks.guard import Guard
from timeviper.callbacks.ledger import Ledger
from timeviper.callbacks.memory_meter import MemoryMeter
from timeviper.callbacks.progress import Progress
from timeviper.callbacks.samples import SampleTable
from timeviper.callbacks.throughput import Throughput
from timeviper.callbacks.transfer_meter import TransferMeter
from timeviper.callbacks.watchdog import Watchdog
from timeviper.config import Recipe
from timeviper.config.checks.recipe import answers_held_out, drops_tokens
from timeviper.config.plugin import find_class
from timeviper.datamodules.remote.storage import is_remote
from timeviper.errors import ConfigError, Problem
from timeviper.planning.hardware import gpu_of
from timeviper.planning.stage import plan_stage
from timeviper.tokenizer import Tokenizer

T = TypeVar("T")


@dataclass(frozen=True)
class Callbacks:
    """What a run is asked about by name, and the list that the Trainer gets."""

    guard: Guard
    checkpoints: Checkpoints
    in_order: list[pl.Callback]


def build_callbacks(
    recipe: Recipe,
    run: Path,
    tokenizer: Tokenizer,
    left_out: frozenset[int],
    command: str,
    at_hand: Callable[[int], str],
) -> Callbacks:
    """left_out: steps of the plan without which this run goes. command: continues the run, for messages. at_hand: what
    is being read at a step, for messages.

    Raises ConfigError with everything that is wrong with a person's own callbacks.
    """
    far = any(is_remote(source.shards) for source in recipe.data.sources.values())
    patience = recipe.data.patience if far else 0.0
    watchdog = Watchdog(recipe.train.watchdog, at_hand, planned_step(recipe), patience)
    guard = Guard(recipe, run, left_out, command, watchdog.pause)
    checkpoints = Checkpoints(recipe.train, command, watchdog.pause)
    optional = optional_callbacks(recipe, run, watchdog.pause)
    throughput = next((c for c in optional if isinstance(c, Throughput)), None)
    in_order = [
        guard,  # before all that look at a step: it may end the run, or send it back
        Curriculum(recipe),  # says that a phase begins before anything is logged in it
        Ledger(recipe.data.max_skipped, recipe.log.every),  # before a checkpoint, which holds its count
        *optional,
        Progress(recipe.name, recipe.train.steps, recipe.log.every, throughput),  # after what it shows was measured
        Export(run / "export", recipe, tokenizer, guard, checkpoints, command),
        checkpoints,  # of a step that all others have seen
        watchdog,  # the last: its clock runs until everything that belongs to the step is done
    ]
    return Callbacks(guard, checkpoints, in_order)


def planned_step(recipe: Recipe) -> float:
    """Seconds of the longest step that is expected of this GPU; 0 where nothing is known of it, or nobody asks."""
    gpu = gpu_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if gpu is None or recipe.train.watchdog.seconds is not None:
        return 0.0
    try:
        phases = plan_stage(recipe, int(os.environ.get("WORLD_SIZE", 1)), gpu).phases
    except ValueError:  # what cannot be planned may still run
        return 0.0
    return max(phase.time.seconds for phase in phases)


def optional_callbacks(
    recipe: Recipe, run: Path, pause: Callable[[], AbstractContextManager[Any]]
) -> list[pl.Callback]:
    """In the order in which they act. `pause`: entered during work within a step that is not training.

    Raises ConfigError with everything that is wrong with a person's own callbacks.
    """
    chosen, parallel = recipe.callbacks, recipe.parallel
    own = _own(recipe)
    throughput = Throughput(recipe) if chosen.throughput else None

    @contextmanager
    def apart() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(pause())
            if throughput:
                stack.enter_context(throughput.pause())
            yield

    found: list[pl.Callback | None] = [
        throughput,
        MemoryMeter(recipe) if chosen.memory else None,
        TransferMeter(chosen.transfer, apart) if chosen.transfer and drops_tokens(recipe) else None,
        SampleTable(chosen.samples, parallel, run, apart) if chosen.samples and answers_held_out(recipe) else None,
        *own,
    ]
    return [callback for callback in found if callback is not None]


def _own(recipe: Recipe) -> list[pl.Callback]:
    wanted = {f"callbacks.own.{name}": (own.callback, own.options) for name, own in recipe.callbacks.own.items()}
    return _made(recipe, wanted, pl.Callback)


def own_loggers(recipe: Recipe) -> list[Logger]:
    """Those of `log.loggers`. Raises ConfigError with everything that is wrong with them."""
    wanted = {f"log.loggers.{name}": (own.logger, own.options) for name, own in recipe.log.loggers.items()}
    return _made(recipe, wanted, Logger)


def _made(recipe: Recipe, wanted: Mapping[str, tuple[str, dict[str, Any]]], base: type[T]) -> list[T]:
    made, problems = [], []
    for key, (place, options) in wanted.items():
        try:
            made.append(_make(place, options, base))
        except ValueError as error:
            problems.append(Problem(key, place, str(error)))
    if problems:
        raise ConfigError(recipe.name, problems)
    return made


def _make(place: str, options: dict[str, Any], base: type[T]) -> T:
    cls = find_class(place)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ValueError(f"{place} is no subclass of lightning.pytorch's {base.__name__}")
    try:
        return cls(**options)
    except Exception as error:  # a stranger's code may raise anything, also for a package that is not installed
        raise ValueError(f"{place}(...) failed: {type(error).__name__}: {error}") from error

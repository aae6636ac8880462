"""The callbacks that a recipe may switch off, and a person's own, as `callbacks` in the recipe says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from timeviper.callback_config import OwnCallback
from timeviper.callbacks.memory import Memory
from timeviper.callbacks.samples import SampleTable
from timeviper.callbacks.throughput import Throughput
from timeviper.callbacks.transfer import TransferMeter
from timeviper.config import Recipe
from timeviper.errors import ConfigError, Problem
from timeviper.find_class import find_class
from timeviper.validate_callbacks import answers_held_out, drops_tokens


def optional_callbacks(
    recipe: Recipe, run: Path, pause: Callable[[], AbstractContextManager[Any]]
) -> list[pl.Callback]:
    """In the order in which they act. `pause`: entered during work within a step that is not training.

    Raises ConfigError with everything that is wrong with a person's own callbacks.
    """
    chosen = recipe.callbacks
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
        Memory(recipe) if chosen.memory else None,
        TransferMeter(recipe, apart) if chosen.transfer and drops_tokens(recipe) else None,
        SampleTable(recipe, run, apart) if chosen.samples and answers_held_out(recipe) else None,
        *own,
    ]
    return [callback for callback in found if callback is not None]


def _own(recipe: Recipe) -> list[pl.Callback]:
    made, problems = [], []
    for name, own in recipe.callbacks.own.items():
        if own is None:
            continue
        try:
            made.append(_make(own))
        except ValueError as error:
            problems.append(Problem(f"callbacks.own.{name}", own.callback, str(error)))
    if problems:
        raise ConfigError(recipe.name, problems)
    return made


def _make(own: OwnCallback) -> pl.Callback:
    cls = find_class(own.callback)
    if not (isinstance(cls, type) and issubclass(cls, pl.Callback)):
        raise ValueError(f"{own.callback} is no subclass of lightning.pytorch.Callback")
    try:
        return cls(**own.options)
    except Exception as error:  # a stranger's code may raise anything
        raise ValueError(f"{own.callback}(...) failed: {type(error).__name__}: {error}") from error

"""What the settings of callbacks mean together with the rest of a recipe. Part of `timeviper.validate`."""

from __future__ import annotations

import math
from collections.abc import Iterator

from timeviper.callback_config import CallbacksConfig, SamplesConfig, TransferConfig
from timeviper.config import Recipe
from timeviper.find_class import PLACE
from timeviper.validate_model import Finding, at_least_one


def callback_problems(callbacks: CallbacksConfig) -> Iterator[Finding]:
    throughput, memory = callbacks.throughput, callbacks.memory
    transfer, samples = callbacks.transfer, callbacks.samples
    if throughput and throughput.peak_tflops is not None and not 0 < throughput.peak_tflops < math.inf:
        yield Finding("callbacks.throughput.peak_tflops", "must be above 0, or null for the GPU's data sheet.")
    if memory:
        yield from at_least_one("callbacks.memory", memory, "every")
    if transfer:
        yield from at_least_one("callbacks.transfer", transfer, "every samples")
    if samples:
        yield from at_least_one("callbacks.samples", samples, "samples frames max_new_tokens")
    for name, own in callbacks.own.items():
        if own and not PLACE.fullmatch(own.callback):
            message = "is named as module:Class, such as my_callbacks:Ema."
            yield Finding(f"callbacks.own.{name}.callback", message)


def callback_warnings(recipe: Recipe) -> Iterator[Finding]:
    """Settings that a person wrote for a callback that has nothing to do in this stage."""
    if recipe.callbacks.transfer not in (None, TransferConfig()) and not drops_tokens(recipe):
        yield Finding("callbacks.transfer", "has no effect: no stage of model.transv.stages drops anything.")
    if recipe.callbacks.samples not in (None, SamplesConfig()) and not answers_held_out(recipe):
        yield Finding("callbacks.samples", "has no effect: there is nothing held out that this stage could answer.")


def drops_tokens(recipe: Recipe) -> bool:
    """Whether TransV does anything in this stage."""
    stages = recipe.model.transv.stages.values()
    return recipe.train.objective == "answer" and any(stage and stage.keep < 1.0 for stage in stages)


def answers_held_out(recipe: Recipe) -> bool:
    """Whether there are held-out questions that the stage's model can answer."""
    return recipe.train.objective == "answer" and bool(recipe.data.val)

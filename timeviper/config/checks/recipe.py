"""What the settings of a recipe mean together: what cannot work, and what has no effect.

Types and names are checked before, in `load.py`; here every value has its type. `problems` stops a recipe,
`warnings` lets it run. Each finding names one key, which may belong to several settings that disagree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from timeviper.config.callbacks import SamplesConfig, TransferConfig
from timeviper.config.checks.finding import Finding, out_of_range
from timeviper.config.checks.model import model_disagreements
from timeviper.config.checks.phases import phase_problems, phase_warnings
from timeviper.config.curriculum import transv_at
from timeviper.config.model import ModelConfig
from timeviper.config.plugin import PLACE
from timeviper.config.settings import BLOCK_TYPES, PARTS, ParallelConfig, Recipe
from timeviper.config.shape import kept_share, tokens_per_frame
from timeviper.errors import did_you_mean


def problems(recipe: Recipe, to_train: bool = True) -> Iterator[Finding]:
    """Everything that cannot work: single numbers, then what does not fit together, each in the order of the file.

    to_train: else the stage is to answer, where the length of each prompt is checked when it is known.
    """
    yield from _identity(recipe)
    yield from out_of_range(recipe)
    yield from model_disagreements(recipe.model)
    yield from _data(recipe)
    yield from _towers(recipe)
    if to_train and recipe.model.towers:
        yield from _lengths(recipe)
    yield from _train(recipe)
    yield from _distillation(recipe)
    yield from _adapters(recipe)
    yield from _parallel(recipe.parallel)
    yield from phase_problems(recipe)
    yield from _own_classes(recipe)


def warnings(recipe: Recipe) -> Iterator[Finding]:
    """Settings that a person wrote and that change nothing."""
    train, stages = recipe.train, recipe.model.transv.stages
    for part in recipe.optim.lrs:
        if part in PARTS and part not in train.trainable:
            yield Finding(f"optim.lrs.{part}", f"has no effect: {part} is not in train.trainable.")
    if "transv" in train.trainable and not _transfers(recipe.model):
        yield Finding("train.trainable", "transv has no parameters: no stage of model.transv.stages transfers.")
    if "transv" not in train.trainable and _transfers(recipe.model) and train.objective == "answer":
        message = "transv stages transfer, but transv is not trained here; a gate that starts at 0 stays at 0."
        yield Finding("train.trainable", message)
    for name, stage in stages.items():
        if stage.keep == 1.0:
            yield Finding(f"model.transv.stages.{name}.keep", "keeps every token: the stage does nothing.")
        if stage.query != "last" and not stage.facts.by_question:
            message = f"has no effect with select = {stage.select}: no question ranks there."
            yield Finding(f"model.transv.stages.{name}.query", message)
    yield from phase_warnings(recipe)
    if recipe.chat.frames_per_time != 1 and recipe.chat.time != "frames":
        message = f"has no effect with chat.time = {recipe.chat.time}; it groups the frames of `frames`."
        yield Finding("chat.frames_per_time", message)
    if train.validate_every > train.steps:
        yield Finding("train.validate_every", f"is more than train.steps = {train.steps}: validates at the end only.")
    if train.objective == "answer" and not recipe.data.val:
        yield Finding("data.val", "is empty: no validation while training, and nothing to evaluate.")
    for group, sources in (("data.sources", recipe.data.sources), ("data.val", recipe.data.val)):
        for name, source in sources.items():
            if source.options and not source.dataset:
                yield Finding(f"{group}.{name}.options", "has no effect without `dataset`.")
    yield from callback_warnings(recipe)
    lora = recipe.model.lora
    if lora.rank == 0 and (lora.weights or lora.dropout):
        yield Finding("model.lora.rank", "is 0: there are no adapters, and the other settings have no effect.")
    if recipe.parallel.tokens_per_piece != ParallelConfig.tokens_per_piece and not recipe.parallel.checkpointed:
        message = "has no effect without parallel.activation_checkpointing: it is about blocks that are computed again."
        yield Finding("parallel.tokens_per_piece", message)
    if recipe.data.workers == 0 and recipe.data.prefetch != 2:
        yield Finding("data.prefetch", "has no effect with data.workers = 0.")


def _transfers(model: ModelConfig) -> bool:
    return any(stage.transfer and stage.keep < 1.0 for stage in model.transv.stages.values())


def _identity(recipe: Recipe) -> Iterator[Finding]:
    for key in ("size", "name"):
        value = getattr(recipe, key)
        if not value and not recipe.out:
            yield Finding(key, "is empty: give it, for the run folder runs/<size>/<name>, or set `out`.")
        elif value and not re.fullmatch(r"[\w][\w.-]*", value):
            yield Finding(key, "becomes a folder: letters, digits, _ . and - only.")


# ---- data and lengths -----------------------------------------------------------------------------------


def _data(recipe: Recipe) -> Iterator[Finding]:
    data, frames = recipe.data, recipe.data.frames
    for group, sources in (("data.sources", data.sources), ("data.val", data.val)):
        for name, source in sources.items():
            if not source.shards and not source.dataset:
                message = "is empty: a folder of .tar shards, a glob of them, or `dataset` in its place."
                yield Finding(f"{group}.{name}.shards", message)
            if source.shards and source.dataset:
                yield Finding(f"{group}.{name}.dataset", "stands beside `shards`: a source is one or the other.")
            if source.dataset and not PLACE.fullmatch(source.dataset):
                yield Finding(f"{group}.{name}.dataset", "is named as module:Class, such as my_data:Clips.")
    if not data.sources:
        yield Finding("data.sources", "is empty: name at least one, as in `world: {shards: data/world/train}`.")
    elif all(source.weight <= 0 for source in data.sources.values()):
        yield Finding("data.sources", "every weight is 0: give at least one source a weight above 0.")
    if frames.max_frames < frames.min_frames:
        yield Finding("data.frames.max_frames", f"must be at least min_frames = {frames.min_frames}.")
    if data.turns == "split" and recipe.train.objective != "answer":
        yield Finding("data.turns", "has no turns to split with train.objective = tags: write whole.")


def _towers(recipe: Recipe) -> Iterator[Finding]:
    if not recipe.model.towers:
        yield Finding("model.towers", "is empty: without a vision encoder nothing sees the frames.")


def _lengths(recipe: Recipe) -> Iterator[Finding]:
    """The longest video must fit one pack (which counts TransV's savings) and the decoder's context."""
    a_frame = tokens_per_frame(recipe.model)
    transv, blocks = recipe.model.transv, max(1, len(recipe.model.decoder.layout))
    wishes = [("data.frames.max_frames", recipe.data.frames.max_frames, kept_share(transv, blocks))]
    for name, phase in recipe.train.phases.items():
        if phase.max_frames is not None or phase.keep:
            key = f"train.phases.{name}.{'keep' if phase.max_frames is None else 'max_frames'}"
            most = recipe.data.frames.max_frames if phase.max_frames is None else phase.max_frames
            ends = (phase.start, phase.start + max(phase.ramp, 0))
            shares = [kept_share(transv_at(step, transv, recipe.train.phases), blocks) for step in ends]
            wishes.append((key, most, max(shares)))
    for key, num_frames, kept in wishes:
        limits = [("data.tokens_per_pack", recipe.data.tokens_per_pack, kept)]
        if recipe.train.objective == "answer":
            limits.append(("model.decoder.max_tokens", recipe.model.decoder.max_tokens, 1.0))
        for limit_key, limit, share in limits:
            total = num_frames * a_frame * share
            if total >= limit > 0:  # so share > 0, too
                fitting = int((limit - 1) / (a_frame * share))
                message = (
                    f"{num_frames} frames x {a_frame} tokens x {share:.2f} (share kept by TransV) = "
                    f"{total:.0f}, which leaves no room for text in {limit_key} = {limit}: "
                    f"at most {fitting} frames, or raise {limit_key}."
                )
                yield Finding(key, message.replace(" x 1.00 (share kept by TransV)", ""))


# ---- training -------------------------------------------------------------------------------------------


def _train(recipe: Recipe) -> Iterator[Finding]:
    train = recipe.train
    for part in train.trainable:
        if part not in PARTS:
            yield Finding(
                "train.trainable", f"has no part {part}; parts: {', '.join(PARTS)}.{did_you_mean(part, PARTS)}"
            )
    if len(set(train.trainable)) < len(train.trainable):
        yield Finding("train.trainable", "names a part twice.")
    if not train.trainable or (train.trainable == ["transv"] and not _transfers(recipe.model)):
        yield Finding("train.trainable", f"leaves nothing to train: name one or more of {', '.join(PARTS)}.")
    if train.objective == "tags" and "transv" in train.trainable:
        yield Finding("train.trainable", "cannot name transv with train.objective = tags, which has no blocks.")
    for part in sorted(set(recipe.optim.lrs) - set(PARTS)):
        yield Finding(f"optim.lrs.{part}", f"is no part of the model; parts: {', '.join(PARTS)}.")


def _adapters(recipe: Recipe) -> Iterator[Finding]:
    """Adapters belong to a part, which must be one that learns."""
    lora, trainable = recipe.model.lora, recipe.train.trainable
    if lora.rank == 0:
        return
    if recipe.train.objective == "tags":
        yield Finding("model.lora.rank", "must be 0 with train.objective = tags: a new tower has nothing to adapt.")
    for target in lora.targets:
        kind = target.partition(".")[0]
        part = kind if kind in PARTS else "decoder"
        if part not in trainable:
            message = f"{target} adapts the part {part}, which is not in train.trainable: add it there."
            yield Finding("model.lora.targets", message)


def _parallel(parallel: ParallelConfig) -> Iterator[Finding]:
    for word in sorted(parallel.checkpointed - set(BLOCK_TYPES)):
        allowed = f"none, all, or some of {', '.join(BLOCK_TYPES)}, separated by commas"
        yield Finding(
            "parallel.activation_checkpointing",
            f"has no block type {word}; write {allowed}.{did_you_mean(word, BLOCK_TYPES)}",
        )
    if parallel.frozen_dtype == "bfloat16" and parallel.param_dtype == "float32":
        message = "would round the frozen weights of a float32 computation: set parallel.param_dtype = bfloat16, too."
        yield Finding("parallel.frozen_dtype", message)


def _own_classes(recipe: Recipe) -> Iterator[Finding]:
    for name, own in recipe.callbacks.own.items():
        if not PLACE.fullmatch(own.callback):
            message = "is named as module:Class, such as my_callbacks:Ema."
            yield Finding(f"callbacks.own.{name}.callback", message)
    for name, own in recipe.log.loggers.items():
        if not PLACE.fullmatch(own.logger):
            message = "is named as module:Class, such as lightning.pytorch.loggers:WandbLogger."
            yield Finding(f"log.loggers.{name}.logger", message)


def callback_warnings(recipe: Recipe) -> Iterator[Finding]:
    """Settings that a person wrote for a callback that has nothing to do in this stage."""
    if recipe.callbacks.transfer not in (None, TransferConfig()) and not drops_tokens(recipe):
        yield Finding("callbacks.transfer", "has no effect: no stage of model.transv.stages drops anything.")
    if recipe.callbacks.samples not in (None, SamplesConfig()) and not answers_held_out(recipe):
        yield Finding("callbacks.samples", "has no effect: there is nothing held out that this stage could answer.")


def _distillation(recipe: Recipe) -> Iterator[Finding]:
    if not recipe.train.distill:
        return
    if not drops_tokens(recipe):
        message = "compares answers with and without TransV, but no stage of model.transv.stages drops anything."
        yield Finding("train.distill", message)
    elif not {"projector", "decoder", "transv"} & set(recipe.train.trainable):
        yield Finding("train.distill", "teaches projector, decoder and transv, none of which is in train.trainable.")


def drops_tokens(recipe: Recipe) -> bool:
    """Whether TransV does anything in this stage."""
    stages = recipe.model.transv.stages.values()
    return recipe.train.objective == "answer" and any(stage.keep < 1.0 for stage in stages)


def answers_held_out(recipe: Recipe) -> bool:
    """Whether there are held-out questions that the stage's model can answer."""
    return recipe.train.objective == "answer" and bool(recipe.data.val)

"""A schedule as settings: a recipe file that `train` takes, and the words for `eval` of the run as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from textwrap import wrap

from timeviper.analysis.redundancy_study import stages_of
from timeviper.analysis.schedule import Schedule
from timeviper.analysis.subject import Subject
from timeviper.config import Recipe, TransVStage
from timeviper.config.load import CONFIG, load_recipe
from timeviper.config.settings import PhaseConfig
from timeviper.errors import show
from timeviper.files import write_whole

WIDTH = 110  # of comments


def recipe_text(subject: Subject, schedule: Schedule, path: Path, comments: Sequence[str] = ()) -> str:
    """A recipe that trains the stage anew with other stages of TransV, which transfer.

    path: where it will lie: what it extends is named from there.
    """
    recipe, config = subject.stored_recipe, subject.export / CONFIG
    lines = [f"# {line}" for comment in comments for line in wrap(comment, WIDTH)]
    lines += [
        f"extends: {os.path.relpath(config.resolve(), path.parent.resolve())}",
        f"name: {recipe.name}_schedule",
        *(['out: ""'] if recipe.out else []),
        "",
        "model:",
        "  transv:",
        "    stages:",
        *(f"      {name}: null" for name in recipe.model.transv.stages),
        *(f"      {name}: {_flow(stage)}" for name, stage in _stages(recipe, schedule, transfer=True).items()),
    ]
    if not schedule.steps and not recipe.model.transv.stages:
        lines[-1] += " {}"
    return "\n".join([*lines, *_train(recipe)]) + "\n"


def _stages(recipe: Recipe, schedule: Schedule, transfer: bool) -> dict[str, TransVStage]:
    """With names that the recipe does not have: what they had would shine through, and their order would stay."""
    return stages_of(schedule, recipe.model.transv.stages, transfer)


def _train(recipe: Recipe) -> Iterator[str]:
    """Transfers learn; and a curriculum goes without what it keeps at stages that are gone: such phases come again,
    under another name."""
    if "transv" not in recipe.train.trainable:
        yield from ("", "train:", f"  trainable: {show([*recipe.train.trainable, 'transv'])}")
    if not any(phase.keep for phase in recipe.train.phases.values()):
        return
    if "transv" in recipe.train.trainable:
        yield from ("", "train:")
    yield "  phases:"
    for name, phase in recipe.train.phases.items():
        if phase.keep:
            new, usual = replace(phase, keep={}, ramp=0), PhaseConfig()
            rest = {f.name: v for f in fields(new) if (v := getattr(new, f.name)) != getattr(usual, f.name)}
            yield f"    {name}: null"
            yield f"    {name}_as_before: {show(rest)}"


def _flow(stage: TransVStage) -> str:
    told = _own(stage) | {"select": stage.select}
    return "{" + ", ".join(f"{name}: {show(value)}" for name, value in told.items()) + "}"


def _own(stage: TransVStage) -> dict[str, object]:
    """What differs from a stage of which nothing is said, and the layer."""
    usual = TransVStage()
    found = {f.name: getattr(stage, f.name) for f in fields(stage)}
    return {name: value for name, value in found.items() if name == "layer" or value != getattr(usual, name)}


def words_for_eval(subject: Subject, schedule: Schedule) -> list[str]:
    """`key=value` for the run as it is: its weights have no transfer at these places, so what is dropped is lost."""
    recipe = subject.stored_recipe
    words = [f"train.phases.{name}=null" for name, phase in recipe.train.phases.items() if phase.keep]
    words += [f"model.transv.stages.{name}=null" for name in recipe.model.transv.stages]
    for name, stage in _stages(recipe, schedule, transfer=False).items():
        words += [f"model.transv.stages.{name}.{field}={show(value)}" for field, value in _own(stage).items()]
    return words


def write_recipe(subject: Subject, schedule: Schedule, path: Path, comments: Sequence[str]) -> Path:
    """The recipe, read again as `train` will. Raises ConfigError if it is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, recipe_text(subject, schedule, path, comments))
    load_recipe(path, to_train=False)
    return path

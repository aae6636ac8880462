"""What a recipe needs on disk before it can start: all that is missing, in one message; and room for the run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from timeviper.config import Recipe, SourceConfig
from timeviper.config.load import load_recipe
from timeviper.config.plugin import find_class
from timeviper.datamodules.remote.storage import hindrance, is_remote
from timeviper.errors import ConfigError, Problem

if TYPE_CHECKING:
    from timeviper.tokenizer import Tokenizer  # not for the sake of what needs no template


# What one script of the published recipe fills, and what to do where it is missing: said once, not for each of nine.
PUBLISHED = {
    ("weights/nemotron-nano-9b-v2", "weights/siglip-so400m-patch14-384"): (
        "there are no such folders with config.json, tokenizer.json and .safetensors in Hugging Face layout. "
        "`bash recipes/nano9b/data/weights.sh` fetches the published ones (docs/nano9b-data.md)."
    ),
    ("data/nano9b/",): (
        "there are no shards of {}. docs/nano9b-data.md names what to download and where to; then "
        "`bash recipes/nano9b/data/all.sh` makes them all."
    ),
}


def ready_recipe(recipe: str | Path | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a stage that can start, or continue, or has finished, which needs nothing any more.

    ConfigError with all that is wrong with it, or missing; FileNotFoundError without such a recipe; ValueError for
    overrides of a recipe that is loaded already.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides)
    elif overrides:
        raise ValueError(f"{recipe.name} is loaded already: give the overrides to load_recipe")
    if not (Path(recipe.run_dir) / "export").is_dir():
        check_inputs(recipe)
    return recipe


def checked(recipe: Recipe, ranks: int) -> list[str]:
    """What `train --check` has found right, in lines. Raises as `ready_recipe` does."""
    ready_recipe(recipe)
    data, model, start = recipe.data, recipe.model, recipe.train.init_from
    lines = [f"{recipe.name}: settings fit each other"]
    if (Path(recipe.run_dir) / "export").is_dir():
        return [*lines, f"the stage is finished, {recipe.run_dir}/export is there: no file was looked for"]
    named = [("model.tokenizer", model.tokenizer or "the one of the package"), ("train.init_from", start)]
    named += [(f"model.towers.{name}.weights", tower.weights) for name, tower in model.towers.items()]
    named += [("model.decoder.weights", model.decoder.weights), ("model.lora.weights", model.lora.weights)]
    for group, sources in (("data.sources", data.sources), ("data.val", data.val)):
        named += [(f"{group}.{name}", source.shards) for name, source in sources.items()]
    named += [(key, f"{place} (a class, not made yet)") for key, place in _classes(recipe).items()]
    lines += [f"  is there: {key} = {place}{_not_asked(place)}" for key, place in named if place]
    return [
        *lines,
        f"  can be written: {recipe.run_dir}",
        f"  {data.packs_per_step} packs a step can be dealt to {ranks} rank{'s' * (ranks > 1)}",
        "not checked: what the shards hold (timeviper shards check), whether memory is enough (timeviper plan)",
    ]


def _not_asked(place: str) -> str:
    return "  (remote: reached when it is read)" if is_remote(place) else ""


def check_inputs(recipe: Recipe) -> None:
    """Raises ConfigError with every file or folder that a recipe names and that is not there or not writable."""
    if problems := list(missing(recipe)):
        raise ConfigError(recipe.name, problems)


def check_template(recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Raises ConfigError if the chat template refuses the conversations that this recipe makes of any data."""
    message = {"role": "user", "content": "?"}
    system = {"role": "system", "content": recipe.chat.system}
    try:
        tokenizer.render([message, {"role": "assistant", "content": "!"}])
    except ValueError as error:
        raise ConfigError(recipe.name, [Problem("model.tokenizer", recipe.model.tokenizer, f"{error}.")]) from error
    try:
        if recipe.chat.system:
            tokenizer.render([system, message, {"role": "assistant", "content": "!"}])
    except ValueError as error:
        raise ConfigError(recipe.name, [Problem("chat.system", recipe.chat.system, f"{error}.")]) from error


def missing(recipe: Recipe) -> Iterator[Problem]:
    """Missing inputs in the order of the recipe; remote places (s3://...) are not asked."""
    model, data, start = recipe.model, recipe.data, recipe.train.init_from
    problems = []
    if model.tokenizer and not Path(model.tokenizer).exists():
        message = "there is no such folder or tokenizer.json: copy the tokenizer of the checkpoint there."
        problems.append(Problem("model.tokenizer", model.tokenizer, message))
    weights = {f"model.towers.{name}.weights": tower.weights for name, tower in model.towers.items()}
    for key, folder in {**weights, "model.decoder.weights": model.decoder.weights}.items():
        if folder and not Path(folder).is_dir():
            message = "there is no such folder: it holds config.json and .safetensors in Hugging Face layout."
            problems.append(Problem(key, folder, message))
    for group, sources in (("data.sources", data.sources), ("data.val", data.val)):
        for name, source in sources.items():
            if not source.dataset and (problem := _lacks_shards(source)):
                problems.append(Problem(f"{group}.{name}.shards", source.shards, problem))
    yield from _together(problems)
    if model.lora.weights:
        from timeviper.weights.peft import find_adapter  # brings torch, which nothing else here needs

        try:
            find_adapter(model.lora.weights)
        except ValueError as error:
            yield Problem("model.lora.weights", model.lora.weights, str(error).partition(": ")[2] + ".")
    for key, place in _classes(recipe).items():
        try:
            find_class(place)
        except ValueError as error:
            yield Problem(key, place, f"{str(error).removeprefix(f'{place}: ')}.")
    if start and not Path(start).is_dir():
        yield Problem("train.init_from", start, f"there is no such export: {_export_hint(start)}")
    if hindrance := _hindrance(Path(recipe.run_dir)):
        yield Problem("out", recipe.run_dir, f"the run cannot be written there: {hindrance}. Name another folder.")


def _classes(recipe: Recipe) -> dict[str, str]:
    """The Python classes that a recipe names, as module:Class, by their settings."""
    named = {f"callbacks.own.{name}.callback": own.callback for name, own in recipe.callbacks.own.items()}
    named |= {f"log.loggers.{name}.logger": own.logger for name, own in recipe.log.loggers.items()}
    for group, sources in (("data.sources", recipe.data.sources), ("data.val", recipe.data.val)):
        named |= {f"{group}.{name}.dataset": source.dataset for name, source in sources.items()}
    return {key: place for key, place in named.items() if place}


def _together(problems: list[Problem]) -> list[Problem]:
    """The same, but those that one script of the published recipe solves as one, in the place of the first."""
    found: dict[object, list[Problem]] = {}
    for number, problem in enumerate(problems):
        place = next((places for places in PUBLISHED if str(problem.value).startswith(places)), number)
        found.setdefault(place, []).append(problem)
    return [one[0] if not isinstance(place, tuple) else _joined(one, place) for place, one in found.items()]


def _joined(problems: list[Problem], places: tuple[str, ...]) -> Problem:
    first, names = problems[0], list(dict.fromkeys(str(problem.value) for problem in problems))
    key = first.key if len(problems) == 1 else f"{first.key} and {len(problems) - 1} more"
    listed = ", ".join(name.removeprefix(places[0]) for name in names)
    return Problem(key, ", ".join(names) if len(names) < 3 else places[0], PUBLISHED[places].format(listed))


def _hindrance(folder: Path) -> str:
    """Why a folder cannot be made or written; empty if it can. Asked of the file system, by writing to it."""
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    try:
        with TemporaryFile(dir=place):
            return ""
    except OSError as error:
        return f"{place}: {error.strerror}"


def _lacks_shards(source: SourceConfig) -> str:
    """What is wrong with the place of a source; empty if nothing is, as far as can be told without the network."""
    if is_remote(source.shards):
        return hindrance(source.shards)
    path = Path(source.shards)
    if any(path.glob("*.tar")) if path.is_dir() else any(name.endswith(".tar") for name in glob(source.shards)):
        return ""
    return f"there are no shards: {_shards_hint(source)}"


def _shards_hint(source: SourceConfig) -> str:
    if "data/world" in source.shards:
        return "`make shards` draws the default data."
    for kind in ("long", "glimpses"):  # other worlds, that recipes of the package need
        if f"data/{kind}/" in source.shards:
            return f"`timeviper shards world data/{kind} --kind {kind}` draws them."
    if "data/footage/" in source.shards:
        return "`timeviper shards needles data/footage` makes them from your videos and pictures (docs/your-data.md)."
    return "`timeviper shards write` makes them from your data (docs/your-data.md)."


def _export_hint(folder: str) -> str:
    if found := re.search(r"runs/([\w.-]+)/stage(\d)_\w+/export/?$", folder):
        size, number = found.groups()
        return f"it appears when the stage before has finished: make train-stage{number} SIZE={size}"
    return "it is the `export` folder in the run of a finished stage."

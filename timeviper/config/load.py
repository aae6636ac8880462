"""A recipe file becomes a checked `Recipe`.

Five layers, later ones win: dataclass default < `model.preset` < `extends:` < the recipe < `key=value` of the
command line. Every layer is cut into single assignments that remember where they were written, so that all
problems can be named together and `explain` can tell where a value comes from.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from timeviper.config import fields as schema
from timeviper.config import schedules
from timeviper.config.checks import recipe as validate
from timeviper.config.origins import Layer, dotlist_layers, file_layers, preset_layer
from timeviper.config.presets import PRESETS
from timeviper.config.settings import Recipe
from timeviper.config.shipped import find_recipe
from timeviper.errors import ConfigError, Problem

log = logging.getLogger(__name__)

CONFIG = "config.yaml"  # the resolved recipe, as `dump` writes it into runs, checkpoints, exports and bundles
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, to_train: bool = True) -> Recipe:
    """The recipe of a YAML file, or of the package's such as `tiny/stage2_instruct`, with `key=value` overrides.

    to_train: else its stage is to answer, and what limits the samples of training alone is not checked.

    Raises:
        ConfigError: with every problem of the recipe.
        FileNotFoundError: no such file, and no such name.
    """
    return _load(path, overrides, to_train).recipe


def from_dict(data: Mapping[str, Any], source: str = CONFIG) -> Recipe:
    """The recipe of a resolved config, as `dump` wrote it: complete, so no preset is applied."""
    draft = _Draft(source)
    draft.apply(Layer(source, dict(data)))
    return draft.finish().recipe


def dump(recipe: Recipe, path: str | Path) -> None:
    """Write the resolved config: every setting, and `null` for what a preset has and this recipe removed."""
    data = dataclasses.asdict(recipe)
    for name in PRESETS[recipe.model.preset]().towers:
        data["model"]["towers"].setdefault(name, None)
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)
    Path(path).write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Row:
    """One setting, explained."""

    key: str
    value: object
    origin: str
    doc: str


def explain(path: str | Path, overrides: Sequence[str] = ()) -> list[Row]:
    """Every setting of a recipe with its value, where it was written, and what it means."""
    loaded = _load(path, overrides)
    return [
        Row(key, value, loaded.origins.get(key, "default"), schema.doc(Recipe, key))
        for key, value in _leaves(dataclasses.asdict(loaded.recipe), Recipe)
    ]


@dataclass(frozen=True)
class _Loaded:
    recipe: Recipe
    origins: dict[str, str]


def _load(name: str | Path, overrides: Sequence[str], to_train: bool = True) -> _Loaded:
    path = find_recipe(name)
    draft = _Draft(str(path))
    layers = [*file_layers(path, draft.problems), *dotlist_layers(overrides, draft.problems)]
    if preset := preset_layer(layers, draft.problems):
        draft.apply(preset)
    for layer in layers:
        draft.apply(layer)
    return draft.finish(to_train)


# ---- assignments ----------------------------------------------------------------------------------------


class _Draft:
    """A recipe in the making: values, where each was written, and all that is wrong so far."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.config: DictConfig = OmegaConf.structured(Recipe)
        self.origins: dict[str, str] = {}
        self.removed: set[str] = set()  # entries set to null: a later layer that wants one back finds its place kept
        self.problems: list[Problem] = []

    def apply(self, layer: Layer) -> None:
        self._section(layer, layer.data, Recipe, "")

    def _section(self, layer: Layer, data: dict[str, Any], hint: schema.Type, prefix: str) -> None:
        for name, value in data.items():
            key = f"{prefix}{name}"
            child = schema.child_type(hint, str(name))
            if child is None:
                near = schema.nearest(str(name), schema.required(hint), prefix, Recipe)
                self._problem(layer, key, value, f"unknown key. {near}")
            elif schema.is_named(hint) and not NAME.fullmatch(str(name)):
                self._problem(layer, key, value, "a name has letters, digits, _ and - only.")
            elif value is None and schema.is_removable(hint, child):
                self._remove(layer, key, hint)
            elif not (schema.is_section(child) or schema.is_named(child)):
                self._assign(layer, key, value, child)
            elif isinstance(value, dict):
                self._open(key, child)
                self._section(layer, value, child, f"{key}.")
            else:
                fix = (
                    "write settings under it, or delete the line." if value is None else "write its settings below it."
                )
                self._problem(layer, key, value, f"must be {schema.describe(child)}: {fix}")

    def _assign(self, layer: Layer, key: str, value: Any, hint: schema.Type) -> None:
        if layer.origin.startswith("preset") and OmegaConf.select(self.config, key) == value:
            return
        try:
            OmegaConf.update(self.config, key, value)
        except OmegaConfBaseException:
            fix = f" Write {int(value)}." if isinstance(value, float) and value.is_integer() else ""
            self._problem(layer, key, value, f"must be {schema.describe(hint)}.{fix}")
        else:
            self.origins[key] = layer.where(key)
            self.removed.discard(key)

    def _open(self, key: str, hint: schema.Type) -> None:
        """Make room for a named entry that is new, or that an earlier layer removed."""
        if key in self.removed or OmegaConf.select(self.config, key) is None:
            inner = schema.required(hint)
            fresh = OmegaConf.structured(inner) if schema.is_section(inner) else {}
            OmegaConf.update(self.config, key, fresh, merge=False)
            self.removed.discard(key)

    def _remove(self, layer: Layer, key: str, hint: schema.Type) -> None:
        """Switch a section off; an entry of a section of names goes when all layers are read."""
        if schema.is_named(hint):
            self.removed.add(key)
        else:
            OmegaConf.update(self.config, key, None)
        self.origins = {k: v for k, v in self.origins.items() if not k.startswith(f"{key}.")}
        self.origins[key] = layer.where(key)

    def _problem(self, layer: Layer, key: str, value: Any, message: str) -> None:
        if key not in (known.key for known in self.problems):  # one is enough, the first says most
            self.problems.append(Problem(key, value, message, layer.where(key)))

    def finish(self, to_train: bool = True) -> _Loaded:
        """Check the meaning of the whole; raise all problems, or warn of settings without effect."""
        for section, _, name in (key.rpartition(".") for key in self.removed):
            OmegaConf.select(self.config, section).pop(name, None)
        try:
            recipe = OmegaConf.to_object(self.config)
        except OmegaConfBaseException as error:
            key = str(getattr(error, "full_key", "") or "recipe")
            self.problems.append(Problem(key, "", str(error).strip().splitlines()[0], self.origins.get(key, "")))
            raise ConfigError(self.source, self.problems) from error
        assert isinstance(recipe, Recipe)
        self.problems += self._located(schedules.expand(recipe.model), recipe)
        self.problems += [p for p in self._located(validate.problems(recipe, to_train), recipe) if not self._follows(p)]
        if self.problems:
            raise ConfigError(self.source, self.problems)
        for warning in self._located(validate.warnings(recipe), recipe):
            log.warning("%s: %s", self.source, warning)
        return _Loaded(recipe, self.origins)

    def _located(self, findings: Iterator[validate.Finding], recipe: Recipe) -> Iterator[Problem]:
        for finding in findings:
            value = _value(recipe, finding.key)
            yield Problem(finding.key, value, finding.message, self.origins.get(finding.key, "default"))

    def _follows(self, problem: Problem) -> bool:
        """Whether an unset value is wrong only because of a problem named already, such as a misspelt key."""
        if any(known.key == "model.preset" for known in self.problems) and problem.key.startswith("model."):
            return True
        if problem.origin != "default":
            return False
        sections = [known.key.rpartition(".")[0] for known in self.problems]
        return any(not section or f"{problem.key}.".startswith(f"{section}.") for section in sections)


# ---- small helpers --------------------------------------------------------------------------------------


def _leaves(data: dict[str, Any], hint: schema.Type, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in data.items():
        child = schema.child_type(hint, name)
        if isinstance(value, dict) and value and (schema.is_section(child) or schema.is_named(child)):
            yield from _leaves(value, child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _value(recipe: Recipe, key: str) -> object:
    value: Any = recipe
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else getattr(value, name)
    return value

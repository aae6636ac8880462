"""Where settings come from: a preset, a YAML file, the file that it extends, the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from timeviper.config.model import ModelConfig
from timeviper.config.presets import PRESETS
from timeviper.config.shipped import find_shipped
from timeviper.errors import ConfigError, Problem


@dataclass
class Layer:
    """Settings from one place. `lines` has the line of each dotted key, where the place is a file."""

    origin: str
    data: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)

    def where(self, key: str) -> str:
        """The place of a key, to the line; a key without a line of its own stands with its section."""
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        return f"{self.origin}:{self.lines[key]}" if key else self.origin


def file_layers(path: Path, problems: list[Problem]) -> list[Layer]:
    """The file, and before it the one that it extends."""
    layer = _read(path)
    where = layer.where("extends")
    parent = layer.data.pop("extends", None)
    if parent is None:
        return [layer]
    if not isinstance(parent, str):
        problems.append(Problem("extends", parent, "must be one file, relative to this one.", where))
        return [layer]
    beside = path.parent / parent
    base_path = beside if beside.is_file() else find_shipped(parent)
    if base_path is None:
        message = f"there is no file {beside}: the path is relative to the folder of {path}."
        problems.append(Problem("extends", parent, message, where))
        return [layer]
    base = _read(base_path)
    if "extends" in base.data:
        message = (
            f"{path} extends {base_path}, which itself extends {base.data.pop('extends')}; one level "
            f"is allowed. Extend the root recipe, and repeat what {base_path.name} changes."
        )
        problems.append(Problem("extends", parent, message, where))
    return [base, layer]


def dotlist_layers(overrides: Sequence[str], problems: list[Problem]) -> Iterator[Layer]:
    """One layer an override: the last one wins, and each is checked by itself. A string is one override."""
    for override in [overrides] if isinstance(overrides, str) else overrides:  # not its letters
        key, equals, _ = override.partition("=")
        if not equals or not key or key.startswith("-"):
            wish = override.lstrip("-") if equals and key else f"{override.lstrip('-').strip('=') or 'key'}=VALUE"
            problems.append(Problem(override, "", f"an override is key=value: write {wish}", "command line"))
            continue
        try:
            typed = override if override != f"{key}=" else f'{key}=""'  # nothing is empty text; null is written out
            data = OmegaConf.to_container(OmegaConf.from_dotlist([typed]))
        except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
            message = f"cannot be read: {str(error).strip().splitlines()[0]}"
            problems.append(Problem(key, override, message, "command line"))
            continue
        assert isinstance(data, dict)
        yield Layer("command line", {str(name): value for name, value in data.items()})


def preset_layer(layers: Sequence[Layer], problems: list[Problem]) -> Layer | None:
    """The sizes that `model.preset` names, whichever layer set it last."""
    name, where = ModelConfig.preset, "default"
    for layer in layers:
        model = layer.data.get("model")
        if isinstance(model, dict) and "preset" in model:
            name, where = model["preset"], layer.where("model.preset")
    if isinstance(name, str) and name in PRESETS:
        return Layer(f"preset {name}", {"model": dataclasses.asdict(PRESETS[name]())})
    near = get_close_matches(str(name), PRESETS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    problems.append(Problem("model.preset", name, f"unknown size; known: {', '.join(PRESETS)}.{hint}", where))
    return None


def _read(path: Path) -> Layer:
    """A YAML file with the line of every key."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        problem = Problem("the whole file", "", f"is not UTF-8 text: {error.reason}.", str(path))
        raise ConfigError(str(path), [problem]) from error
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        # OmegaConf's own loader: 1e-5 is a number there, and a key written twice is an error.
        data = OmegaConf.to_container(OmegaConf.create(text)) if node else {}
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(str(path), [_not_yaml(path, error)]) from error
    if not isinstance(data, dict):
        message = "a recipe is a mapping of keys, such as `optim: {lr: 1e-5}`."
        raise ConfigError(str(path), [Problem("the whole file", data, message, f"{path}:1")])
    return Layer(str(path), {str(name): value for name, value in data.items()}, dict(_key_lines(node)))


def _not_yaml(path: Path, error: Exception) -> Problem:
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark else 1
    reason = getattr(error, "problem", None) or str(error).strip().splitlines()[0]
    return Problem(f"line {line}", "", f"not valid YAML: {reason.rstrip('.')}.", f"{path}:{line}")


def _key_lines(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for name, child in node.value:
            key = f"{prefix}{name.value}"
            yield key, name.start_mark.line + 1
            yield from _key_lines(child, f"{key}.")

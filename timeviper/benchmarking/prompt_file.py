"""A prompt in a file of one's own, for who wants the very words of a paper: YAML with the fields of `testset.Form`.

    text: |
      {question}
      {options}
    cue: "The best answer is:"
    max_new_tokens: 16

Or a section for each kind of question (`mcq`, `group`, `open`, `grounding`, `caption`, `dense`): one file for all sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from timeviper.benchmarking.item import TASKS, Task
from timeviper.benchmarking.testset import Form
from timeviper.errors import ConfigError, Problem, did_you_mean, one_of

# Of each text the fields in braces that it may have.
BRACES = {"text": ("question", "options", "subtitles", "duration", "frames"), "option": ("letter", "text")}
BRACES |= {"subtitles": ("cues",), "cue": BRACES["text"]}
NAMES = tuple(field.name for field in fields(Form))


def read_prompt(path: Path, task: Task) -> Form:
    """The prompt of a file for questions of a kind. ConfigError, with all that is wrong with it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(str(path), [Problem("--prompt", path.name, f"cannot be read: {error}.")]) from None
    if isinstance(content, dict) and set(content) <= set(TASKS):
        if task not in content:
            message = f"has no section {task}, as whose questions are asked: it has {one_of(content)}."
            raise ConfigError(str(path), [Problem("--prompt", path.name, message)])
        content = content[task]
    if not isinstance(content, dict):
        message = f"must be a mapping with text and, as wished, {one_of(NAMES[1:])}."
        raise ConfigError(str(path), [Problem("--prompt", path.name, message)])
    if problems := _problems(content, task):
        raise ConfigError(str(path), problems)
    texts: dict[str, Any] = {n: v.rstrip("\n") if isinstance(v, str) else v for n, v in content.items()}
    return Form(**texts)


def _problems(content: Mapping[str, Any], task: Task) -> list[Problem]:
    found = []
    for name, value in content.items():
        if name not in NAMES:
            found.append(Problem(str(name), value, f"is none of {one_of(NAMES)}.{did_you_mean(str(name), NAMES)}"))
        elif name == "max_new_tokens":
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                found.append(Problem(name, value, "must be a whole number above 0."))
        elif not isinstance(value, str):
            found.append(Problem(name, value, "must be a text."))
        elif wrong := _braces(name, value):
            found.append(Problem(name, value, wrong))
    text = content.get("text")
    if not isinstance(text, str):
        found.append(Problem("text", text, "is what is said to the model: it must be there."))
    elif not found and "{question}" not in text and task not in ("caption", "dense"):
        found.append(Problem("text", text, "has no {question}, so that all questions would be one."))
    return found


def _braces(name: str, value: str) -> str:
    """What is wrong with the fields in braces; "" nothing."""
    allowed = BRACES.get(name)
    if allowed is None:
        return ""  # system and prefix are said as they are
    try:
        used = [field for _, field, _, _ in Formatter().parse(value) if field is not None]
    except ValueError as error:
        return f"has braces that do not fit ({error}): write {{{{ and }}}} for braces that are meant."
    odd = [field for field in used if field not in allowed]
    known = one_of([f"{{{one}}}" for one in allowed])
    return f"has {{{odd[0]}}}; it may have {known}. Write {{{{ and }}}} for braces that are meant." if odd else ""

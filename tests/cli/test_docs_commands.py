"""Every command line that a page prints: verbs, options, recipes, settings and targets exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from doc_commands import PAGES, blocks, lines
from tree import ROOT

from timeviper.cli.main import app
from timeviper.config.load import load_recipe
from timeviper.errors import ConfigError, Problem

MAIN = typer.main.get_command(app)
STAGE2 = "recipes/tiny/stage2_instruct.yaml"
COMMANDS = [(page, line) for page in PAGES for block in blocks(page) for line in lines(block)]
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
VARIABLES = set(re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE))


def words_of(line: str) -> list[str]:
    """Without comments, and without what a shell would put in; the first of several commands alone."""
    words = shlex.split(re.sub(r"\$\([^)]*\)", "$", line), comments=True)
    end = next((i for i, word in enumerate(words) if word in ("|", "&&", ";", ">")), len(words))
    return [word for word in words[:end] if "$" not in word]


def check_settings(recipe: str, overrides: list[str]) -> None:
    """Every key exists. Recipes that a page writes are not there: their keys are looked up in another."""
    there = recipe if (ROOT / recipe).is_file() else STAGE2
    problems: list[Problem] = []
    try:
        load_recipe(ROOT / there, overrides)
    except ConfigError as error:
        problems = error.problems
    wrong = [p for p in problems if there == recipe or "unknown" in p.message]
    assert not wrong, "\n".join(map(str, wrong))


def check_verb(words: list[str]) -> None:
    command: Any = MAIN
    path: list[str] = []
    while hasattr(command, "commands"):
        name, words = words[0], words[1:]
        assert name in command.commands, f"there is no verb {' '.join([*path, name])}"
        path, command = [*path, name], command.commands[name]
    context = command.make_context(path[-1], words)  # UsageError for what there is not
    overrides = context.params.get("overrides") or context.params.get("words") or []
    assert not [word for word in overrides if word.startswith("--")], "an option that there is not"
    named = [str(v) for k, v in context.params.items() if k in ("recipe", "run") and str(v).endswith(".yaml")]
    for recipe in named:
        assert (ROOT / recipe).is_file() or "/" not in recipe, f"there is no {recipe}"
    if named or path == ["train"]:
        check_settings((named or [STAGE2])[0], [word for word in overrides if "=" in word])


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{p}-{i}" for i, (p, _) in enumerate(COMMANDS)])
def test_a_printed_command_exists(page: str, line: str) -> None:
    words = words_of(line)
    if not words:
        return
    assert ".venv/bin/timeviper" not in line, "pages write timeviper (see docs/your-data.md)"
    if words[0] == "timeviper":
        check_verb(words[1:])
    elif words[0] == "make":
        settings = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        goals = [word for word in words[1:] if "=" not in word]
        assert set(goals) <= TARGETS, f"no such target among {goals}"
        assert settings.keys() <= VARIABLES, f"no such variable among {settings.keys()}"
        stage = next((g.removeprefix("train-") for g in goals if g.startswith("train-stage")), "stage2")
        recipe = next((ROOT / "recipes" / settings.get("SIZE", "tiny")).glob(f"{stage}*.yaml"))
        overrides = [w for w in shlex.split(settings.get("ARGS", "")) if "=" in w and not w.startswith("-")]
        check_settings(str(settings.get("RECIPE", recipe.relative_to(ROOT))), overrides)
    elif words[0] in ("python", ".venv/bin/python") and len(words) > 1 and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file()


def test_the_pages_have_commands() -> None:
    assert len(COMMANDS) > 60
    assert {line.split()[0] for _, line in COMMANDS} >= {"timeviper", "make"}


@pytest.mark.parametrize(
    "line",
    [
        f"timeviper trian {STAGE2}",
        f"timeviper preview {STAGE2} --step 2",
        "timeviper shards check data/mine --jason report.json",
        f"timeviper train {STAGE2} optim.lrr=1",
        "timeviper plan recipes/tiny/stage9.yaml",
        "make train-stage9",
        "make ask VIDO=a.mp4",
        'make train-stage2 ARGS="optim.lrr=1"',
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    with pytest.raises((AssertionError, Exception), match=r"[Nn]o such|there is no|unknown|does not exist|an option"):
        test_a_printed_command_exists("here", line)


def test_the_first_of_two_runs_of_one_folder_is_named_apart() -> None:
    """Two recipes in one run folder do not continue each other."""
    runs: dict[str, set[str]] = {}
    for page, line in COMMANDS:
        words = words_of(line)
        if words[:2] == ["timeviper", "train"] and page != "docs/extending.md" and (ROOT / words[2]).is_file():
            out = next((w for w in words if w.startswith("out=")), Path(words[2]).stem)
            runs.setdefault(out, set()).add(" ".join(sorted(w for w in words[2:] if w.startswith("data.sources"))))
    assert not {out: found for out, found in runs.items() if len(found) > 1}

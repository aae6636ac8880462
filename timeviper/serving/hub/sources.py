"""The product's own modules as a flat set of files with relative imports: what a Hugging Face folder carries as code.

transformers copies the files that an entry imports relatively, from one folder and no deeper, to a place of its own,
where this package need not be installed. So each module that the entries reach becomes one file beside them:
`timeviper.model.decoder` is `timeviper_model_decoder.py`. Only imports change, and names of modules in texts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path

from timeviper.package import VERSION

PACKAGE = Path(__file__).parents[2]
ENTRIES = "timeviper.serving.hub.remote"
# What transformers looks for by name; the other files begin with `timeviper_`.
CONFIGURATION, MODELING, PROCESSING = "configuration_timeviper", "modeling_timeviper", "processing_timeviper"

_MENTION = re.compile(r"\btimeviper((?:\.\w+)+)")
_BY_NAME = "\n# Imported by name when they are built. transformers copies only what it sees imported:\n"
_THIS = "\n\nimport sys\n\nMODULE = sys.modules[__name__]  # for those that import the module, not a name of it\n"


def generated(families: Iterable[str]) -> dict[str, str]:
    """The text of every file by its name. families: of the towers, whose modules are found by name when they run.

    Raises ValueError for an import that has no relative form.
    """
    towers = [f"timeviper.model.vision.{family}" for family in sorted(set(families))]
    waiting = [*(f"{ENTRIES}.{name}" for name in (CONFIGURATION, MODELING, PROCESSING)), *towers]
    found, as_modules = dict[str, str](), set[str]()
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found[module], needs, whole = _rewritten(module)
        as_modules |= whole
        waiting += needs
    found[f"{ENTRIES}.{MODELING}"] += _BY_NAME + "".join(f"from .{flat(name)} import TOWER\n" for name in towers)
    files = {f"{flat(name)}.py": text + (_THIS if name in as_modules else "") for name, text in sorted(found.items())}
    # transformers remembers the model's class by the config's, and that by what its file and those it imports hold: two
    # folders with other code must not share a config.
    digest = sha256("".join(files.values()).encode()).hexdigest()[:16]
    files[f"{CONFIGURATION}.py"] += f"\n# Of the folder whose code has the digest {digest}.\n"
    return files


def flat(module: str) -> str:
    """The file, without its ending, that a module becomes."""
    inside = module.removeprefix(f"{ENTRIES}.")
    if inside in (CONFIGURATION, MODELING, PROCESSING):
        return inside
    return (inside if module == inside else f"timeviper.{inside}").replace(".", "_")


def _rewritten(module: str) -> tuple[str, list[str], set[str]]:
    """A module's text with relative imports, the modules that it needs, and those of them that it takes as modules."""
    path = _path(module)
    assert path is not None, module
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    needs: list[str] = []
    whole: set[str] = set()
    for node in sorted(_own_imports(ast.parse(text), module), key=lambda node: -node.lineno):
        indent, new = " " * node.col_offset, list[str]()
        for origin, name, alias in _origins(node):
            needs.append(origin)
            if name is None:
                whole.add(origin)
            said = "MODULE" if name is None else name
            new.append(f"{indent}from .{flat(origin)} import {said}{f' as {alias}' if alias != said else ''}")
        assert node.end_lineno is not None
        lines[node.lineno - 1 : node.end_lineno] = sorted(set(new))
    here = module if path.name == "__init__.py" else module.rpartition(".")[0]
    body = "\n".join(lines).replace("{__package__}.", f"{{__package__}}.{flat(here)}_")
    source = path.relative_to(PACKAGE.parent).as_posix()
    head = (
        f"# Generated from {source} of TimeViper recipes {VERSION} (Apache-2.0): change that one, and export again.\n"
    )
    return head + _MENTION.sub(_mentioned, body) + "\n", needs, whole


def _own_imports(tree: ast.Module, module: str) -> Iterator[ast.ImportFrom]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "timeviper" for alias in node.names):
            raise ValueError(f"{module}, line {node.lineno}: `import timeviper...` has no relative form; use `from`")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "timeviper":
            yield node


def _origins(node: ast.ImportFrom) -> Iterator[tuple[str, str | None, str]]:
    """(module that defines it, name there, name here) of each name; the second is None for a module as such."""
    assert node.module is not None
    for alias in node.names:
        inside = f"{node.module}.{alias.name}"
        if _path(inside) is not None:
            yield inside, None, alias.asname or alias.name
        else:
            yield _definer(node.module, alias.name), alias.name, alias.asname or alias.name


@cache
def _definer(module: str, name: str) -> str:
    """The module that a name comes from, where a package only passes it on."""
    path = _path(module)
    if path is not None and path.name == "__init__.py":
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
                return _definer(node.module, name)
    return module


def _path(module: str) -> Path | None:
    place = PACKAGE.joinpath(*module.split(".")[1:])
    candidates = (place.with_suffix(".py"), place / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _mentioned(found: re.Match[str]) -> str:
    """A dotted name in a text as the file that holds it: its longest beginning that is a module."""
    parts = found[0].split(".")
    for end in range(len(parts), 1, -1):
        module = ".".join(parts[:end])
        if _path(module) is not None:
            return ".".join((flat(module), *parts[end:]))
    return found[0].replace(".", "/")  # a folder

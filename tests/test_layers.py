"""The floor plan, read from the imports: one way down, no circle. docs/architecture.md shows the same table."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tree import ROOT

# From the ground up. A module may import what stands in a lower layer, and its own folder; nothing beside it.
LAYERS = {
    "kernels pack tokenizer errors console files svg package quiet": "operations, what flows, what all may say",
    "config": "settings: what they are, how they are read and checked, what holds at a step; no torch",
    "model offload": "single-device code of the model and its arithmetic; saved tensors on the host",
    "datamodules parallel": "samples into packs; checkpointing, compile and sharding of a model",
    "weights": "exports, first values, lineage, other people's checkpoints",
    "training features": "the step and its checkpoints; frozen towers run once",
    "inference planning inspection": "answers; foresight; hindsight",
    "callbacks analysis serving benchmarking": "around a step; looking inside; many who ask; public test sets",
    "trainer": "recipe in, finished stage out: the only place that joins everything",
    "cli": "what a person types, and what it prints",
}
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names.split()}
# So that help, explain and a mistyped recipe answer at once.
NO_TORCH = ("config", "errors", "console", "svg", "package", "quiet", "__init__")


def files() -> dict[str, Path]:
    """Every module of the package by its dotted name; the linked folders once."""
    paths = [(ROOT, p) for top in ("kernels", "datamodules", "callbacks") for p in (ROOT / top).rglob("*.py")]
    paths += [(ROOT / "timeviper", p) for p in (ROOT / "timeviper").rglob("*.py") if not p.parent.is_symlink()]
    return {".".join(p.relative_to(base).with_suffix("").parts).removesuffix(".__init__"): p for base, p in paths}


MODULES = {name: path for name, path in files().items() if name != "__main__"}  # which hands over to the cli


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, by dotted names; lazily, too, but not for the sake of types alone."""
    tree = ast.parse(path.read_text())
    tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test))]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    inner = {name.removeprefix("timeviper.") for name in found if name.startswith("timeviper.")}
    return {name if name in MODULES else name.rpartition(".")[0] for name in inner} & MODULES.keys()


def broken(graph: dict[str, set[str]]) -> list[str]:
    """What is wrong with modules and what they import, a sentence each: where the code belongs instead."""
    found = []
    for name, needs in sorted(graph.items()):
        here = name.split(".")[0]
        if here not in LAYER:
            found.append(f"timeviper.{name} stands in no layer: put it into one of {', '.join(LAYER)}.")
            continue
        for other in sorted(needs):
            there = other.split(".")[0]
            if there in (here, *LAYER) and (there == here or LAYER[there] < LAYER[here]):
                continue
            above = " ".join(names for names in LAYERS if LAYER[names.split()[0]] > LAYER.get(there, 0)).split()
            found.append(
                f"timeviper.{name} imports timeviper.{other}, which does not stand below it: code that needs it "
                f"belongs into {' or '.join(above)}; or move what both need below {here}."
            )
    return found


def circle(graph: dict[str, set[str]], depth: int) -> list[str]:
    """Files and folders, by the first `depth` words of their names, that import each other in a circle."""
    below: dict[str, set[str]] = {}
    for name, needs in graph.items():
        short = [".".join(n.split(".")[:depth]) for n in (name, *needs)]
        below.setdefault(short[0], set()).update(set(short[1:]) - {short[0]})
    while leaves := [name for name, needs in below.items() if not needs & below.keys()]:
        for name in leaves:
            del below[name]
    return sorted(below)


GRAPH = {name: imports(path) for name, path in MODULES.items() if name not in ("__init__", "assets")}


def test_a_module_imports_only_what_stands_below_it() -> None:
    assert broken(GRAPH) == []


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_there_is_no_circle(depth: int) -> None:
    assert circle(GRAPH, depth) == []


def test_a_wrong_import_is_told_with_the_place_where_the_code_belongs() -> None:
    (says,) = broken({"model.decoder": {"kernels.ssd", "training.step"}})
    assert says.startswith("timeviper.model.decoder imports timeviper.training.step, which does not stand below it")
    assert "belongs into inference or planning or inspection or callbacks or analysis or serving" in says
    assert says.split(";")[0].endswith("or trainer or cli")
    assert "parallel imports" in broken({"parallel": {"datamodules.plan"}})[0]  # beside is not below
    assert "stands in no layer" in broken({"utils": set()})[0]
    assert circle({"a.x": {"b.y"}, "b.z": {"a.w"}, "a.w": set(), "b.y": set()}, 1) == ["a", "b"]


def test_what_reads_a_recipe_imports_no_torch() -> None:
    """At the top of a module, which is what runs when it is imported."""
    for name, path in MODULES.items():
        if name.split(".")[0] in NO_TORCH:
            for node in ast.parse(path.read_text()).body:
                tops = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "")]
                assert not {(top or "").split(".")[0] for top in tops} & {"torch", "lightning", "transformers"}, name

"""The code that a folder carries: nothing of it needs this package, and nothing of it is missing."""

from __future__ import annotations

import ast
import re
import sys

import pytest

from timeviper.config.model import TOWER_FACTS
from timeviper.serving.hub.sources import CONFIGURATION, MODELING, PROCESSING, flat, generated

# torch, transformers and av bring all of these along.
ALLOWED = {"torch", "transformers", "av", "numpy", "jinja2", "tokenizers", "safetensors"}


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return generated(["vit", "siglip", "dinov2"])


def test_no_file_imports_this_package_or_one_that_is_not_there(files: dict[str, str]) -> None:
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                tops = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                tops = {(node.module or "").split(".")[0]}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1, name
                assert f"{node.module}.py" in files, (name, node.module)
                continue
            else:
                continue
            assert tops <= ALLOWED | sys.stdlib_module_names, (name, tops)


def test_nothing_of_the_package_s_dotted_names_is_left(files: dict[str, str]) -> None:
    for name, text in files.items():
        assert re.findall(r"\btimeviper\.(?!py\b)\w+", text.split("\n", 1)[1]) == [], name


def test_transformers_sees_every_file_from_the_entries(files: dict[str, str]) -> None:
    """It follows lines of the form `from .name import`, and copies what it finds so."""
    for entry in (CONFIGURATION, MODELING, PROCESSING):
        seen, waiting = set(), [f"{entry}.py"]
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += [f"{m}.py" for m in re.findall(r"^\s*from\s+\.(\S+)\s+import", files[name], re.MULTILINE)]
        assert "timeviper_config_model.py" in seen
        if entry == MODELING:
            assert {f"timeviper_model_vision_{family}.py" for family in TOWER_FACTS} <= seen
            model = seen
        elif entry == PROCESSING:
            assert seen | model == set(files)


def test_only_the_towers_of_the_model_come_along() -> None:
    assert "timeviper_model_vision_siglip.py" not in generated(["vit"])


def test_names() -> None:
    assert flat("timeviper.model.decoder") == "timeviper_model_decoder"
    assert flat("timeviper.serving.hub.remote.modeling_timeviper") == "modeling_timeviper"
    assert flat("timeviper.serving.hub.remote.form") == "timeviper_form"


def test_every_file_says_where_it_comes_from(files: dict[str, str]) -> None:
    first = files["timeviper_model_decoder.py"].splitlines()[0]
    assert first.startswith("# Generated from timeviper/model/decoder.py of TimeViper recipes ")
    second = files["timeviper_kernels_dispatch.py"]
    assert second.rstrip().endswith("# for those that import the module, not a name of it")

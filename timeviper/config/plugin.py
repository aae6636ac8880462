"""A person's class, named in a recipe as `module:Class`."""

from __future__ import annotations

import importlib
import os
import re
import sys
from traceback import extract_tb

PLACE = re.compile(r"[\w.]+:\w+")  # how a class is named


def find_class(name: str) -> type:
    """The class behind `module:Class`, found from the folder where the run starts, or in the environment.

    Raises ValueError that names what is missing.
    """
    if not PLACE.fullmatch(name):
        raise ValueError(f"a class is named as module:Class, got {name!r}")
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # the command line does not put it there
        sys.path.insert(0, os.getcwd())
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{name}: cannot import {module} ({error}); it is looked for in this folder and in the environment"
        ) from error
    except Exception as error:  # a stranger's code may raise anything
        place = extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        raise ValueError(f"{name}: importing {module} failed: {said}") from error
    if not hasattr(imported, attribute):
        raise ValueError(f"{name}: the module {module} has no {attribute}")
    return getattr(imported, attribute)

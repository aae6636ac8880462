"""What the package says of itself: its version, its links, and the names that it hands on when they are first used."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

VERSION = "0.1.0"
LINKS = ("callbacks", "datamodules", "kernels", "recipes")  # to folders of these names at the root

# What `timeviper` hands on, by the module that defines it.
NAMES = {
    "config": "Recipe",
    "config.load": "load_recipe",
    "datamodules.frames.video": "Frames read_video",
    "inference.answer": "Answer",
    "inference.ask": "LoadedModel ask load load_state",
    "inference.eval_report": "Report",
    "inference.evaluate": "evaluate",
    "inference.video_state": "VideoState",
    "trainer": "train",
}


def check_links() -> None:
    """ImportError where a link was checked out as a file, which is what git makes of it where it may not make one."""
    for name in LINKS:
        if (Path(__file__).parent / name).is_file():
            raise ImportError(
                f"timeviper/{name} is a plain file that should be a link to the folder {name}/: "
                "clone again where symbolic links are allowed, with git -c core.symlinks=true clone"
            )


def fill_when_used(namespace: dict[str, Any]) -> None:
    """Let a module have `NAMES`, each of which it imports when it is first used."""
    where = {name: module for module, listed in NAMES.items() for name in listed.split()}

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}")
        value = namespace[name] = getattr(import_module(f"timeviper.{where[name]}"), name)
        return value

    namespace["__getattr__"] = get
    namespace["__dir__"] = lambda: sorted({*namespace, *where})

"""TimeViper recipes: training for a hybrid Mamba-2 / attention video language model.

What a notebook or a script needs is here: `train` a stage, `load` and `ask` it, `evaluate` it. Each name is imported
when it is first used, so that `import timeviper` takes no time.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timeviper.config import Recipe
    from timeviper.config.load import load_recipe
    from timeviper.datamodules.frames.video import Frames, read_video
    from timeviper.inference.ask import Answer, LoadedModel, ask, load
    from timeviper.inference.eval_report import Report
    from timeviper.inference.evaluate import evaluate
    from timeviper.trainer import train

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Frames",
    "LoadedModel",
    "Recipe",
    "Report",
    "ask",
    "evaluate",
    "load",
    "load_recipe",
    "read_video",
    "train",
]

for _name in ("callbacks", "datamodules", "kernels", "recipes"):
    if (Path(__file__).parent / _name).is_file():  # which is what git makes of a link where it may not make one
        raise ImportError(
            f"timeviper/{_name} is a plain file that should be a link to the folder {_name}/: "
            "clone again where symbolic links are allowed, with git -c core.symlinks=true clone"
        )

if not TYPE_CHECKING:  # to a type checker a module with __getattr__ has every name
    _WHERE = {
        "Answer": "inference.ask",
        "Frames": "datamodules.frames.video",
        "LoadedModel": "inference.ask",
        "Recipe": "config",
        "Report": "inference.eval_report",
        "ask": "inference.ask",
        "evaluate": "inference.evaluate",
        "load": "inference.ask",
        "load_recipe": "config.load",
        "read_video": "datamodules.frames.video",
        "train": "trainer",
    }

    def __getattr__(name: str) -> Any:
        if name not in _WHERE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"timeviper.{_WHERE[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

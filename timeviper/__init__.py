"""TimeViper recipes: training for a hybrid Mamba-2 / attention video language model."""

from pathlib import Path

__version__ = "0.1.0"

for _name in ("callbacks", "datamodules", "kernels", "recipes"):
    if (Path(__file__).parent / _name).is_file():  # which is what git makes of a link where it may not make one
        raise ImportError(
            f"timeviper/{_name} is a plain file that should be a link to the folder {_name}/: "
            "clone again where symbolic links are allowed, with git -c core.symlinks=true clone"
        )

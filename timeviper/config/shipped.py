"""The file that a recipe's name means: one that is there, or one of those that come with the package.

`tiny/stage2_instruct`, `tiny/stage2_instruct.yaml` and `recipes/tiny/stage2_instruct.yaml` mean one, in any folder.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "recipes"


def shipped() -> list[str]:
    """The names of the package's recipes."""
    return sorted(file.relative_to(FOLDER).with_suffix("").as_posix() for file in FOLDER.glob("*/*.yaml"))


def find_recipe(name: str | Path) -> Path:
    """Raises FileNotFoundError, which says what there is, where the name is neither a file nor shipped."""
    path = Path(name)
    if found := path if path.is_file() else find_shipped(path):
        return found
    raise FileNotFoundError(f"there is no recipe {path}; {_similar(path)}")


def find_shipped(name: str | Path) -> Path | None:
    """The file of one of the package's recipes; None if it has none of that name."""
    return FOLDER / f"{_plain(name)}.yaml" if _plain(name) in shipped() else None


def means_recipe(name: str | Path) -> bool:
    """Whether a word of the command line means a recipe where it might also be a run folder or an override."""
    path = Path(name)
    return path.suffix == ".yaml" or (not path.exists() and find_shipped(path) is not None)


def _plain(name: str | Path) -> str:
    return Path(name).as_posix().removeprefix("recipes/").removesuffix(".yaml")


def _similar(path: Path) -> str:
    """The nearest files beside it; without any there, the nearest of the package."""
    beside = sorted(other.name for other in path.parent.glob("*.yaml"))
    begins = [name for name in beside if name.startswith(path.stem)]
    if near := begins or get_close_matches(path.name, beside, n=1, cutoff=0.4):
        return f"did you mean {path.with_name(near[0])}?"
    if beside:
        return f"{path.parent}/ has {', '.join(beside)}"
    names, name = shipped(), _plain(path)
    listed = f"the package has {', '.join(names)}"
    near = [known for known in names if name in known] or get_close_matches(name, names, n=1)
    return f"did you mean {' or '.join(near)}? ({listed})" if near else listed

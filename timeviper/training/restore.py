"""Any checkpoint of a run as an export: for a stage that did not come to its end, or to look at it on the way."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from timeviper.config.load import CONFIG, load_recipe
from timeviper.files import new_folder
from timeviper.parallel import plain_name
from timeviper.tokenizer import Tokenizer
from timeviper.training.store import PREFIX, CheckpointStore, check_readable, step_of
from timeviper.weights.export import write_export

_MODEL = "state_dict.model."  # before every name: of the module that trains, and of the attribute that holds the model


class CheckpointTensors(Mapping[str, Tensor]):
    """The tensors of the model in a checkpoint, whole, whatever number of ranks wrote them; read when looked up."""

    def __init__(self, checkpoint: Path) -> None:
        """Raises ValueError if it is no readable checkpoint."""
        self.checkpoint = checkpoint
        try:
            found = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            raise ValueError(f"{checkpoint} cannot be read as a checkpoint: {error}") from error
        self.stored = {
            plain_name(name.removeprefix(_MODEL)): (name, about)
            for name, about in found.items()
            if name.startswith(_MODEL) and isinstance(about, TensorStorageMetadata)
        }

    def __getitem__(self, name: str) -> Tensor:
        stored, about = self.stored[name]
        tensor = torch.empty(about.size, dtype=about.properties.dtype)
        try:
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as is meant: one process reads all
            dcp.load({stored: tensor}, checkpoint_id=self.checkpoint, no_dist=True)
        except CheckpointException as error:
            raise ValueError(f"{self.checkpoint} is damaged: {name} cannot be read ({error})") from error
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def export_checkpoint(run: Path, named: str, out: Path) -> Path:
    """Write a checkpoint's model to `out` as the end of a stage does; returns the checkpoint.

    named: `latest`, a step as 500 or step=500, or the checkpoint's folder. Needs neither the data of the run nor its
    ranks. Raises ValueError for one that is not there or cannot be read, FileExistsError for a folder that holds
    something.
    """
    checkpoint = _find(run, named)
    check_readable(checkpoint, str(run))
    config = checkpoint / CONFIG
    recipe = load_recipe(config if config.is_file() else checkpoint.parent.parent / CONFIG, to_train=False)
    tensors = CheckpointTensors(checkpoint)
    write_export(new_folder(out), tensors, recipe, Tokenizer.load(recipe.model.tokenizer), step_of(checkpoint))
    return checkpoint


def _find(run: Path, named: str) -> Path:
    whole = {p.name: p for p in _whole(run)}
    if (step := named.removeprefix(PREFIX)).isdigit() and (found := whole.get(f"{PREFIX}{step}")):
        return found
    if named == "latest" and whole:
        pointer = run / "checkpoints" / "latest"
        newest = list(whole)[-1]
        return whole.get(pointer.read_text().strip() if pointer.is_file() else newest, whole[newest])
    if (folder := Path(named)).resolve() in [p.resolve() for p in (*_whole(folder.parent.parent),)]:
        return folder
    there = (
        f"there are {', '.join(whole)}" if whole else "there are none: its checkpoints are gone, or it never wrote one"
    )
    raise ValueError(f"{run} has no checkpoint {named!r}; {there}")


def _whole(run: Path) -> list[Path]:
    return CheckpointStore(run / "checkpoints", 1, None).whole()  # type: ignore[arg-type]  # nothing is written

"""A video's state as a file: safetensors whose header says in JSON what it is, and of what.

A file is whole or not there. A header is read without its tensors, and their shapes are held against what the model
makes of the header's numbers before any memory is given to them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from timeviper.files import whole_file
from timeviper.inference.state_key import StateError
from timeviper.weights.tensors import FILE_DTYPES

VERSION = 1  # raised with every change that an older version would misread
METADATA = "timeviper_state"


def write_state(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """OSError, and nothing of it stays, where the disk does not take it."""
    there = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {METADATA: json.dumps({"version": VERSION, **header})}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        try:
            save_file(there, partial, metadata=metadata)
        except SafetensorError as error:  # all that it says of a full disk
            size = sum(tensor.nbytes for tensor in there.values())
            raise OSError(f"{path}: a state of {size / 1e6:,.1f} MB could not be written whole ({error})") from error


class StateFile:
    """An open file. StateError if it is missing, truncated, no state, or from a newer version."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise StateError(str(path), "there is no such state; `timeviper prefill` makes one")
        try:
            self._file = safe_open(self.path, framework="pt")
            metadata = self._file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise StateError(str(path), f"is truncated, or no state at all ({error}): make it anew") from error
        try:
            self.header: dict[str, Any] = dict(json.loads(metadata[METADATA]))
            version = int(self.header["version"])
        except (KeyError, ValueError, TypeError) as error:
            raise StateError(str(path), "is a safetensors file, but no video's state") from error
        if version > VERSION:
            made = self.header.get("timeviper", "a later one")
            detail = f"is from a newer version (form {version}, made by timeviper {made}; this one reads {VERSION})"
            raise StateError(str(path), f"{detail}: update timeviper, or make it anew")

    def number(self, name: str) -> int:
        """A count of the header, 0 or more."""
        value = self.header.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise StateError(str(self.path), f"its header has {name} = {value!r}, which is no count: make it anew")
        return value

    def read(self, expected: Mapping[str, Tensor], device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The tensors that are expected (on the meta device). StateError before any is read if they are others."""
        names = set(self._file.keys())
        if lost := sorted(expected.keys() - names):
            raise StateError(str(self.path), f"lacks {', '.join(lost[:3])} (of {len(lost)}): make it anew")
        for name, tensor in expected.items():
            part = self._file.get_slice(name)
            shape, stored = tuple(part.get_shape()), str(part.get_dtype())
            dtype = FILE_DTYPES.get(stored, stored.lower())
            if shape != tuple(tensor.shape) or dtype != str(tensor.dtype).removeprefix("torch."):
                wanted = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
                raise StateError(str(self.path), f"{name} is {dtype} {list(shape)}, not {wanted}: make it anew")
        return {name: self._file.get_tensor(name).to(device) for name in expected}

"""Folders of safetensors: read tensor by tensor, written shard by shard, never whole in memory."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from timeviper.errors import one_of
from timeviper.files import TEMPORARY, put, write_whole

log = logging.getLogger("timeviper")

# What safetensors files call dtypes.
FILE_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
}  # fmt: skip
FLOATS = ("float64", "float32", "float16", "bfloat16")
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter/adapter.safetensors"  # not beside the weights: a folder's tensors are those of one model
SHARD_BYTES = 2 << 30  # the most that is held in memory while weights are copied


@dataclass
class TensorFolder:
    """The tensors of a folder, in one safetensors file or several with an index.

    Raises ValueError that names the file when one is missing, truncated or no safetensors file.
    """

    path: Path
    _open: dict[Path, Any] = field(default_factory=dict)

    @cached_property
    def files(self) -> dict[str, Path]:
        """The file of every tensor, by name."""
        found: dict[str, Path] = {}
        for path in self._paths():
            for name in self._handle(path).keys():  # noqa: SIM118
                if name in found:
                    raise ValueError(
                        f"{self.path} holds {name} twice, in {found[name].name} and in {path.name}, and no {INDEX} "
                        "says which counts: remove the files of one of them"
                    )
                found[name] = path
        if (self.path / INDEX).is_file():
            listed = json.loads((self.path / INDEX).read_text())["weight_map"]
            if lost := sorted(set(listed) - set(found)):
                raise ValueError(
                    f"{self.path}: {INDEX} lists {len(lost)} tensors that its files do not hold, such as "
                    f"{lost[0]} in {listed[lost[0]]}: fetch that file again"
                )
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._handle(self.files[name]).get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """In torch's words, or the file's where it has others."""
        stored = str(self._handle(self.files[name]).get_slice(name).get_dtype())
        return FILE_DTYPES.get(stored, stored.lower())

    def quantised(self, names: Iterable[str]) -> list[str]:
        """A line for each dtype that holds no weights: with or without its scales, its numbers mean something else."""
        odd: dict[str, list[str]] = {}
        for name in names:
            if (dtype := self.dtype(name)) not in FLOATS:
                odd.setdefault(dtype, []).append(name)
        advice = f"only {one_of(FLOATS)} are read: fetch the release in bfloat16, or dequantise it first"
        return [
            f"{dtype}: {len(n)} tensors, such as {n[0]}, are quantised weights; {advice}" for dtype, n in odd.items()
        ]

    def read(self, name: str) -> Tensor:
        return self._handle(self.files[name]).get_tensor(name)

    def read_rows(self, name: str, rows: slice) -> Tensor:
        """Rows of a tensor; the others stay on disk."""
        return self._handle(self.files[name]).get_slice(name)[rows]

    def _paths(self) -> list[Path]:
        if (self.path / INDEX).is_file():
            names = set(json.loads((self.path / INDEX).read_text())["weight_map"].values())
            paths = sorted(self.path / name for name in names)
            if (whole := self.path / "model.safetensors").is_file() and whole.name not in names:
                log.warning(
                    "%s holds %s beside the shards of %s: the shards are read (transformers would read the former). "
                    "Remove what is stale",
                    self.path, whole.name, INDEX,
                )  # fmt: skip
        else:
            paths = sorted(self.path.glob("*.safetensors"))
        if missing := [path.name for path in paths if not path.is_file()]:
            raise ValueError(f"{self.path} lacks {', '.join(missing)}, which {INDEX} names: fetch them")
        if not paths:
            others = sorted(path.name for path in self.path.glob("*") if path.suffix in (".bin", ".pt", ".pth"))
            hint = f"; {others[0]} is a pickle, which is never read: convert it to safetensors" if others else ""
            raise ValueError(f"{self.path} has no *.safetensors file{hint}")
        return paths

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path} is truncated or no safetensors file ({error}): fetch it again") from error
        return self._open[path]


def write_tensors(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """Write tensors as they come, at most `shard_bytes` a file (a larger tensor has one of its own)."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = [_save(folder / f"shard-{i}{TEMPORARY}", part) for i, part in enumerate(_parts(tensors, shard_bytes), 1)]
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    names = ["model.safetensors"] if len(shards) == 1 else names
    for stale in (*folder.glob("*.safetensors"), folder / INDEX):
        stale.unlink(missing_ok=True)
    weight_map: dict[str, str] = {}
    total = 0
    for name, (path, keys, size) in zip(names, shards):
        put(path, folder / name)
        weight_map |= dict.fromkeys(keys, name)
        total += size
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_whole(folder / INDEX, json.dumps(index, indent=2) + "\n")
    return [folder / name for name in names]


def _parts(tensors: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if part and size + tensor.nbytes > limit:
            yield part
            part, size = {}, 0
        part[name] = tensor.contiguous()
        size += tensor.nbytes
    yield part


def _save(path: Path, part: dict[str, Tensor]) -> tuple[Path, list[str], int]:
    try:
        save_file(part, path, metadata={"format": "pt"})
    except SafetensorError as error:  # all that it says of a full disk
        raise OSError(f"{path.parent}: a file could not be written whole ({error})") from error
    return path, list(part), sum(tensor.nbytes for tensor in part.values())

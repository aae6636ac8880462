"""What an export is and where it comes from: `lineage.json`, this stage with the stages before it nested in `from`.

Digests say whether two of them are the same: of the recipe (every setting), of the weights (every bit), and of the
training data (members and checksums in the shard indexes, wherever the shards lie).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timeviper.config import Recipe
from timeviper.datamodules.mixture import Source, Unit
from timeviper.datamodules.shards.index_file import SampleRecord
from timeviper.package import VERSION

LINEAGE = "lineage.json"
# What every generation has; exports of earlier versions lack the digests and the version.
_REQUIRED: dict[str, type] = {"name": str, "step": int, "seed": int, "parts": list}


class LineageError(ValueError):
    """A lineage that cannot be read, and of which export."""


def describe(
    recipe: Recipe,
    step: int,
    parts: Iterable[str],
    weights: str,
    data: Mapping[str, str] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of `lineage.json`. weights: a `WeightsDigest`; data: `source_digest` by name, where it is known;
    notes: `doubts`, sentences on why the weights can hardly be what was wanted, and `ended_early`, whether a callback
    ended the stage before its last step.

    Raises as `read_lineage` does for the stage before.
    """
    return {
        "name": recipe.name,
        "size": recipe.size,
        "step": step,
        "seed": recipe.seed,
        "parts": sorted(parts),
        "trained": sorted(recipe.train.trainable),
        "timeviper": VERSION,
        "recipe": recipe_digest(recipe),
        "weights": weights,
        "data": None if data is None else dict(data),
        **(notes or {}),
        "from": read_lineage(find_export(recipe.train.init_from)) if recipe.train.init_from else None,
    }


def find_export(run: str | Path) -> Path:
    """A run folder or the export in it."""
    run = Path(run)
    return run / "export" if (run / "export").is_dir() else run


def read_lineage(export: Path) -> dict[str, Any]:
    """What `describe` gave, each generation checked; `recipe`, `weights` and so on may be missing in old ones.

    LineageError that names the file, and the ancestor, when it cannot be read.
    """
    path = export / LINEAGE
    try:
        lineage = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LineageError(
            f"{path} cannot be read ({error}): it says which stages the export comes from. Copy the export again, "
            "or run its stage again."
        ) from error
    for generation, entry in enumerate(_generations(lineage)):
        stages = "1 stage" if generation == 1 else f"{generation} stages"
        place = f", {stages} back," if generation else ""
        wrong = "is no object" if not isinstance(entry, dict) else _wrong(entry)
        if wrong:
            raise LineageError(f"{path}{place} {wrong}. Copy the export again, or run its stage again.")
    return lineage


def _generations(lineage: Any) -> Iterator[Any]:
    while True:
        yield lineage
        lineage = lineage.get("from") if isinstance(lineage, dict) else None
        if lineage is None:
            return


def _wrong(entry: dict[str, Any]) -> str:
    for name, type in _REQUIRED.items():
        if name not in entry:
            return f"lacks {name!r}"
        if not isinstance(entry[name], type) or isinstance(entry[name], bool):
            return f"has {name} = {entry[name]!r}, which is no {'number' if type is int else type.__name__}"
    return ""


def generations(lineage: dict[str, Any]) -> list[dict[str, Any]]:
    """This stage first, then its ancestors, without the nesting."""
    return [{k: v for k, v in entry.items() if k != "from"} for entry in _generations(lineage)]


def recipe_digest(recipe: Recipe) -> str:
    """16 hexadecimal digits of every setting, `out` and `about` left out: they change nothing."""
    settings = {k: v for k, v in asdict(recipe).items() if k not in ("out", "about")}
    return _short(json.dumps(settings, sort_keys=True).encode())


class WeightsDigest:
    """Digests tensors as they pass by, so that they are not read twice."""

    def __init__(self) -> None:
        self.each: dict[str, str] = {}

    def passing(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            bits = tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy()
            self.each[name] = f"{tensor.dtype} {list(tensor.shape)} {sha256(bits.data).hexdigest()}"
            yield name, tensor

    def result(self) -> str:
        """16 hexadecimal digits, whatever the order of the tensors and the files that they are in."""
        return _short(json.dumps(self.each, sort_keys=True).encode())


def source_digest(source: Source) -> str:
    """16 hexadecimal digits of all samples of a source, from its indexes alone, wherever and in what shards they lie.

    What a Python class serves has no checksums; there it covers keys, types and lengths.
    """
    a, words = source.shards.arrays, source.shards.words
    _, spelled = _by_name(a["member_name"], words)
    samples = np.repeat(np.arange(source.shards.samples), np.diff(a["member_start"]))
    order = np.lexsort((spelled, samples))  # the members of a sample by name, as a copy may have them in another order
    parts = [a["key"].tobytes()]
    for name in ("member_name", "talk_type"):
        names, codes = _by_name(a[name], words)
        parts += [json.dumps(names).encode(), (codes[order] if name == "member_name" else codes).tobytes()]
    parts += [a[name][order].astype("<u8").tobytes() for name in ("member_size", "member_crc32")]
    plain = ("key_start", "member_start", "medium_start", "talk_start", "medium_frames", "talk_text", "talk_answer")
    parts += [a[name].astype("<u8").tobytes() for name in plain]
    return _short(*parts, a["medium_seconds"].astype("<f8").tobytes())


def _by_name(codes: np.ndarray, words: list[str]) -> tuple[list[str], np.ndarray]:
    """The words that are used, sorted, and the number of each of them for every code."""
    used, codes = np.unique(codes, return_inverse=True)
    names = [words[code] for code in used.tolist()]
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), "<u4")
    rank[order] = np.arange(len(names))
    return sorted(names), rank[codes]


def question_digest(unit: Unit) -> str:
    """16 hexadecimal digits of one sample's bytes and which of its conversations is meant; its place does not count."""
    return _short(json.dumps([_content(unit.record), unit.conversation]).encode())


def _content(record: SampleRecord) -> list[Any]:
    members = sorted((name, m.size, m.crc32) for name, m in record.members.items())
    talk = [(c.type, c.text_bytes, c.answer_bytes) for c in record.conversations]
    return [record.key, members, record.duration, record.frames, talk]


def _short(*parts: bytes) -> str:
    digest = sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]

"""The tensors of a state's file, held against what its model makes of the header's numbers before they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from timeviper.inference.marks import Mark, boundary_at, last_mark, read_marks
from timeviper.inference.state_file import StateFile
from timeviper.inference.state_key import StateError
from timeviper.model.boundary import Boundary, counting_cut, question_cut, schedule, shape_of
from timeviper.tokenizer import Message

if TYPE_CHECKING:
    from timeviper.inference.ask import LoadedModel

Times = np.ndarray
FACTS = {"duration": float, "count": int, "fps": float, "kind": str, "missing": int}
"""Of `Frames`, in the header, with their types."""


def read_facts(file: StateFile) -> tuple[str, list[Message], str, dict[str, Any]]:
    """Tier, messages, head and FACTS of a header. StateError for what is not there, or is something else."""
    header, where = file.header, str(file.path)
    try:
        tier, messages, head = header["tier"], header["messages"], header["head"]
        facts = {name: kind(header[name]) for name, kind in FACTS.items()}
        fine = tier in ("state", "features") and isinstance(head, str) and isinstance(messages, list)
        fine = fine and facts["kind"] in ("video", "image") and facts["duration"] >= 0
        if not fine or not all(isinstance(m["role"], str) and isinstance(m["content"], str) for m in messages):
            raise ValueError("other values than a state has")
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(where, f"its header lacks what a state's has ({error!r}): make it anew") from error
    return tier, messages, head, facts


def read_features(file: StateFile, model: LoadedModel, device: torch.device | str) -> tuple[Times, dict[str, Tensor]]:
    """Seconds of each frame, and features by tower."""
    frames, expected = file.number("frames"), _times(file.number("frames"))
    dtype = model.model.decoder.embeddings.weight.dtype
    for name, tower in model.recipe.model.towers.items():
        shape = (frames, tower.tokens, tower.width)
        expected[f"features.{name}"] = torch.empty(shape, dtype=dtype, device="meta")
    found = file.read(expected)
    times = found.pop("times").numpy()
    return times, {name.removeprefix("features."): t.to(device) for name, t in found.items()}


def read_boundary(
    file: StateFile, model: LoadedModel, device: torch.device | str, until: float | None
) -> tuple[Times, Boundary, Mark | None]:
    """Seconds of each frame, and the boundary; of a video watched live as it was at the last mark not after `until`
    seconds (None: at the last of all), and that mark."""
    where, like = str(file.path), _shape(file, model)
    marks = read_marks(file.header.get("marks", []), file.number("frames"), like.seen, where)
    if until is not None and not marks:
        raise StateError(where, "was watched whole, without marks: ask about all of it (no --until)")
    mark = last_mark(marks, until, where) if marks else None
    shapes = like.tensors()
    at = "" if mark is None or mark is marks[-1] else f"marks.{marks.index(mark)}."
    states = {f"{at}{n}": t for n, t in shapes.items() if at and n.endswith((".conv", ".ssm"))}
    own = {f"boundary.{n}": t for n, t in shapes.items()}
    found = file.read(_times(file.number("frames")) | own | states)
    times, made = found["times"].numpy(), Boundary.of(_named(found, "boundary."), like)
    if mark is not None:
        mark.states = _named({name: found[name] for name in states}, at)
        made = boundary_at(made, mark, mark.frames * model.model.tokens_per_frame)
        times = times[: mark.frames]
    return times, made.to(device), mark


def _times(frames: int) -> dict[str, Tensor]:
    return {"times": torch.empty(frames, dtype=torch.float64, device="meta")}


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _shape(file: StateFile, model: LoadedModel) -> Boundary:
    """What a file must hold, as far as its header's numbers may be believed."""
    decoder, where, a_frame = model.model.decoder, str(file.path), model.model.tokens_per_frame
    frames, vision, text, cut = (file.number(name) for name in ("frames", "vision", "text", "cut"))
    if vision != frames * a_frame or vision + text > decoder.cfg.max_tokens:
        detail = f"{frames:,} frames of {a_frame} tokens with {text:,} of text"
        raise StateError(where, f"its header says {vision:,} vision tokens, but {detail}: make it anew")
    usual = question_cut(decoder.segments, schedule(decoder.segments, [vision]))
    if cut not in (usual, counting_cut(decoder.segments)):
        raise StateError(where, f"its header says that it was cut before segment {cut}: make it anew")
    empty = decoder.empty_state(1, "meta", decoder.embeddings.weight.dtype)
    return shape_of(empty, decoder.cfg, decoder.transv_cfg, vision, text, cut)

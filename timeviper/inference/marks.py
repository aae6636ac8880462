"""Marks in a video that is being watched: how far it was, so that one may ask about it up to there.

Before the first stage that drops, keys, values and the waiting stream of the first minutes are the first rows of those
of the whole; only convolution and state-space states change with every token. A mark keeps these, whatever the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from timeviper.inference.state_key import StateError
from timeviper.model.boundary import Boundary
from timeviper.model.state import AttentionState, MambaState, SegmentState


@dataclass
class Mark:
    """How far a video was."""

    seconds: float
    frames: int
    seen: int
    """Tokens of the prompt up to there."""
    head: str
    """As in a `VideoState`."""
    content: str
    """SHA-256 of the frames so far."""
    states: dict[str, Tensor] = field(default_factory=dict, repr=False)
    """Convolution and state-space states by the names of `Boundary.tensors`; empty: those of the boundary itself."""

    def facts(self) -> dict[str, Any]:
        """Without tensors."""
        return {name: value for name, value in asdict(self).items() if name != "states"}

    def num_bytes(self) -> int:
        return sum(t.nbytes for t in self.states.values())


def mamba_states(segments: Sequence[SegmentState]) -> dict[str, Tensor]:
    """Copies, by name."""
    return {
        f"segments.{i}.{n}.{name}": tensor.clone()
        for i, segment in enumerate(segments)
        for n, block in enumerate(segment.blocks)
        if isinstance(block, MambaState)
        for name, tensor in vars(block).items()
    }


def boundary_at(boundary: Boundary, mark: Mark, vision: int) -> Boundary:
    """The boundary of the first `mark.seen` tokens, of which `vision` are of vision; its rows are not copied."""
    segments = []
    for i, segment in enumerate(boundary.segments):
        blocks: list[MambaState | AttentionState | None] = []
        for n, block in enumerate(segment.blocks):
            if isinstance(block, AttentionState):
                block = AttentionState(block.keys[: mark.seen], block.values[: mark.seen])
            elif isinstance(block, MambaState) and mark.states:
                block = MambaState(*(mark.states[f"segments.{i}.{n}.{name}"] for name in ("conv", "ssm")))
            blocks.append(block)
        segments.append(SegmentState(blocks, [mark.seen], [mark.seen]))
    held = slice(0, mark.seen if len(boundary.x) else 0)
    return Boundary(segments, boundary.x[held], boundary.kind[held], boundary.index[held], vision, mark.seen)


def last_mark(marks: Sequence[Mark], until: float | None, where: str) -> Mark:
    """The last one not after `until` seconds (None: of all). StateError where there is none."""
    there = [mark for mark in marks if until is None or mark.seconds <= until + 1e-6]
    if not there:
        if not marks:
            raise StateError(where, "has no mark yet: a question is about what was there at one")
        raise StateError(where, f"has its first mark at {marks[0].seconds:g} s, which is after {until:g} s")
    return there[-1]


def read_marks(facts: object, frames: int, seen: int, where: str) -> list[Mark]:
    """From the header of a file. StateError if they are not what `Mark.facts` gives, of so much video."""
    try:
        marks = [Mark(**each) for each in facts]  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue, reportUnknownVariableType]
        fine = all(0 < m.frames <= frames and 0 < m.seen <= seen and m.seconds >= 0 for m in marks)
    except TypeError:
        marks, fine = [], False
    if not fine:
        raise StateError(where, "its header has marks that cannot be read: make it anew")
    return marks


class Rows:
    """A tensor that grows at its end; what was handed out stays as it was."""

    def __init__(self, empty: Tensor) -> None:
        self._room, self.count = empty, 0

    def append(self, new: Tensor) -> None:
        end = self.count + len(new)
        if end > len(self._room):
            larger = self._room.new_empty(max(end, int(len(self._room) * 1.25)), *self._room.shape[1:])
            larger[: self.count] = self._room[: self.count]
            self._room = larger
        self._room[self.count : end] = new.to(self._room)
        self.count = end

    @property
    def rows(self) -> Tensor:
        return self._room[: self.count]


def named_marks(marks: Sequence[Mark]) -> dict[str, Tensor]:
    """Their tensors for a file."""
    return {f"marks.{k}.{name}": t for k, mark in enumerate(marks) for name, t in mark.states.items()}


def empty_rows(width: int, like: Tensor) -> tuple[Rows, Rows, Rows]:
    """Residuals, kinds and places of a stream that has not begun."""
    kind, index = (torch.empty(0, dtype=dtype) for dtype in (torch.uint8, torch.int32))
    return Rows(like.new_empty(0, width)), Rows(kind), Rows(index)

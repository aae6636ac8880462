"""What a decoder holds of a video at the last point that has not seen the question: the part that every later question
shares, as tensors with names.

Up to a cut, numbers alone decide what TransV drops, so nothing there depends on what will be asked: the states of all
blocks, keys and values of the dropped tokens for the text that comes, and the residual stream that waits before the
first stage that ranks by the question. Without such a stage the cut is the end, and a question costs its own tokens.
How large that is stands in `timeviper.model.state_size`.

A video that is still being watched is cut earlier, before the first stage that counts (`counting_cut`): how many vision
tokens there will be is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from timeviper.config import DecoderConfig, TransVConfig
from timeviper.config.shape import Segment, cut_layout, kept_counts
from timeviper.kernels.bounds import Bounds
from timeviper.model.state import AttentionState, DecoderState, MambaState, SegmentState
from timeviper.model.transv import DroppedTokens, Stream
from timeviper.pack import Kind, text_runs

BESIDE = 5  # bytes a waiting token beside its residual: kind (uint8) and place (int32)


def schedule(segments: Sequence[Segment], groups: Sequence[int]) -> list[list[int]]:
    """The vision tokens of each group of media that reach each segment."""
    left = [list(groups)]
    for segment in segments[1:]:
        assert segment.stage is not None
        left.append(kept_counts(segment.stage.keep, groups, left[-1]))
    return left


def question_cut(segments: Sequence[Segment], left: Sequence[Sequence[int]]) -> int:
    """The number of segments that nothing of the question reaches: all of them where no stage ranks by it."""
    for i, segment in enumerate(segments):
        if i and left[i] != left[i - 1] and segment.stage is not None and segment.stage.facts.by_question:
            return i
    return len(segments)


def counting_cut(segments: Sequence[Segment]) -> int:
    """The number of segments before any stage that drops: those that need not know how many frames there will be."""
    drops = (i for i, s in enumerate(segments) if s.stage is not None and s.stage.keep < 1)
    return next(drops, len(segments))


@dataclass
class Boundary:
    """One prompt up to its last vision token, in the segments before a cut."""

    segments: list[SegmentState]
    """Of the segments before the cut. Never written to again: a question gets copies (`SegmentState.copy`)."""
    x: Tensor
    """`[n, D]`: the residual stream that waits at the cut; `[0, D]` where that is the end."""
    kind: Tensor
    """`[n]` uint8, of its tokens, on the host."""
    index: Tensor
    """`[n]` int32, on the host: where each stood in the stream that entered the decoder."""
    vision: int
    """Vision tokens that entered the decoder."""
    seen: int
    """All tokens that did."""
    dropped: dict[int, DroppedTokens] = field(default_factory=dict)
    """What the stages before the cut took out, by the number of their segments."""

    @property
    def cut(self) -> int:
        return len(self.segments)

    @property
    def text(self) -> int:
        """Tokens of text among those seen."""
        return self.seen - self.vision

    def waiting(self, size: int) -> list[Stream]:
        """The stream at the cut in pieces of `size` tokens, without copies of its residuals."""
        return [
            Stream(x, Bounds([len(x)], x.device), kind.to(x.device), [[n]], index.to(x.device).long(), runs)
            for x, kind, index in zip(*(t.split(max(size, 1)) for t in (self.x, self.kind, self.index)))
            for n, runs in [(int((kind == Kind.VISION).sum()), text_runs(kind, [len(kind)]))]
            if len(x)
        ]

    def to(self, device: torch.device | str) -> Boundary:
        """The same elsewhere; what is there already is not copied."""
        found = {name: t if name in ("kind", "index") else t.to(device) for name, t in self.tensors().items()}
        return Boundary.of(found, self)

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, without unused room."""
        named: dict[str, Tensor] = {"x": self.x, "kind": self.kind, "index": self.index}
        for i, segment in enumerate(self.segments):
            for n, block in enumerate(segment.blocks):
                if isinstance(block, MambaState):
                    named |= {f"segments.{i}.{n}.conv": block.conv, f"segments.{i}.{n}.ssm": block.ssm}
                elif isinstance(block, AttentionState):
                    rows = segment.lengths[0]
                    named |= {
                        f"segments.{i}.{n}.keys": block.keys[:rows],
                        f"segments.{i}.{n}.values": block.values[:rows],
                    }
        for i, memory in self.dropped.items():
            if memory.keys is not None and memory.values is not None:
                named |= {f"dropped.{i}.keys": memory.keys, f"dropped.{i}.values": memory.values}
        return named

    @staticmethod
    def of(tensors: Mapping[str, Tensor], like: Boundary) -> Boundary:
        """The boundary of these `tensors()`, in the form of another one."""
        segments = []
        for i, segment in enumerate(like.segments):
            blocks: list[MambaState | AttentionState | None] = []
            for n, block in enumerate(segment.blocks):
                names = [] if block is None else [f"segments.{i}.{n}.{field}" for field in vars(block)]
                blocks.append(None if block is None else type(block)(*(tensors[name] for name in names)))
            segments.append(SegmentState(blocks, list(segment.lengths), list(segment.lengths)))
        dropped = {i: _memory(tensors, i, memory.size) for i, memory in like.dropped.items()}
        x, kind, index = (tensors[name] for name in ("x", "kind", "index"))
        return Boundary(segments, x, kind, index, like.vision, like.seen, dropped)

    def num_bytes(self) -> int:
        return sum(t.nbytes for t in self.tensors().values())


def _memory(tensors: Mapping[str, Tensor], number: int, size: int) -> DroppedTokens:
    memory = DroppedTokens(size)
    memory.keys, memory.values = (tensors.get(f"dropped.{number}.{name}") for name in ("keys", "values"))
    memory.count = 0 if memory.keys is None else len(memory.keys)
    return memory


def shape_of(
    empty: DecoderState, cfg: DecoderConfig, transv: TransVConfig, vision: int, text: int, cut: int | None = None
) -> Boundary:
    """A boundary on the meta device: names, shapes and dtypes of all that it holds. empty: `Decoder.empty_state` there,
    in the dtype that it computes in; cut: of a video that is still watched, else where the question comes in."""
    segments = cut_layout(cfg.layout, transv)
    left = [sum(n) for n in schedule(segments, [vision])]
    cut = question_cut(segments, [[n] for n in left]) if cut is None else cut
    dtype = next((b.conv.dtype for s in empty.segments for b in s.blocks if isinstance(b, MambaState)), None)
    dtype = dtype or next(b.keys.dtype for s in empty.segments for b in s.blocks if isinstance(b, AttentionState))

    def rows(count: int) -> Tensor:
        return torch.empty(count, cfg.kv_heads, cfg.head_dim, dtype=dtype, device="meta")

    states, dropped = [], dict[int, DroppedTokens]()
    for i, segment in enumerate(empty.segments[:cut]):
        length = left[i] + text
        blocks = [
            AttentionState(rows(length), rows(length)) if isinstance(b, AttentionState) else b for b in segment.blocks
        ]
        states.append(SegmentState(blocks, [length], [length]))
        stage = segments[i].stage
        if i and left[i] != left[i - 1] and stage is not None:
            size = left[i - 1] if transv.keys == "all" else left[i - 1] - left[i]
            kept = size if stage.has_weights else 0
            memory = dropped[i] = DroppedTokens(size)
            if kept:
                memory.keys, memory.values, memory.count = rows(kept), rows(kept), kept
    held = 0 if cut == len(segments) else left[cut - 1] + text
    x = torch.empty(held, cfg.width, dtype=dtype, device="meta")
    kind, index = (torch.empty(held, dtype=d, device="meta") for d in (torch.uint8, torch.int32))
    return Boundary(states, x, kind, index, vision, vision + text, dropped)

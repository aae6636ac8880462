"""What flows from the shards to the model: token streams with boundaries, never padded batches.

Letters: L tokens, S sequences, F frames, T tokens a frame, C channels of a tower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor

IGNORE = -100  # label of a position that is not supervised


class Kind(IntEnum):
    """The role of a token, which decides what TransV may do with it."""

    CONTEXT = 0  # prompt text before the first vision token: never touched by TransV
    VISION = 1  # may be dropped; a dropped token is a key and value of the transfer
    INSTRUCTION = 2  # prompt text after the first vision token: receives
    ANSWER = 3  # what the model writes: supervised, never receives


TextRun = tuple[int, int, int]
"""Text tokens of one kind beside each other: how many, their `Kind`, vision tokens of the sequence before them."""


def text_runs(kind: Tensor, lengths: Sequence[int]) -> list[list[TextRun]]:
    """The text of each sequence, in order; kind `[L]` on the host, or it is waited for."""
    sequences = []
    for part in kind.cpu().split(list(lengths)):
        runs, vision = [], 0
        for value, count in zip(*(t.tolist() for t in part.unique_consecutive(return_counts=True))):
            if value == Kind.VISION:
                vision += count
            else:
                runs.append((count, value, vision))
        sequences.append(runs)
    return sequences


def vision_groups(runs: Sequence[TextRun], vision: int) -> list[int]:
    """How many of a sequence's vision tokens belong to the media of each turn that has any; at least one number.

    An answer ends a group: it may not depend on what came later, so nothing that TransV does to a group looks further.
    """
    return parted({seen for _, kind, seen in runs if kind == Kind.ANSWER}, vision)


def all_vision_groups(runs: Sequence[Sequence[TextRun]], lengths: Sequence[int]) -> list[list[int]]:
    """`vision_groups` of each sequence, from its length."""
    return [vision_groups(row, length - sum(n for n, *_ in row)) for row, length in zip(runs, lengths)]


def parted(cuts: Iterable[int], total: int) -> list[int]:
    """The lengths of what is left when 0 to `total` is cut at some places."""
    edges = sorted({*cuts, 0, total})
    return [b - a for a, b in pairwise(edges)] or [0]


@dataclass
class Pack:
    """Several sequences in one token stream.

    The k-th vision position of the stream holds vision token `k % T` of frame `k // T`: frames and
    vision positions are in the same order, so the splice is a single masked copy.
    """

    ids: Tensor
    """`[L]` int64; 0 at vision positions, where it is never looked at."""
    labels: Tensor
    """`[L]` int64: the token that follows, where it is to be predicted, else -100. Already shifted,
    so no label reaches over a boundary, and removing vision positions keeps labels in place."""
    kind: Tensor
    """`[L]` uint8, values of `Kind`."""
    lengths: list[int]
    """Tokens of each of the S sequences."""
    frames: Tensor
    """`[F, 3, H, W]` uint8; without those that come as features."""
    frame_times: Tensor
    """`[F]` float64, seconds at which a player shows each frame (see `Frames.times`)."""
    frame_counts: list[int]
    """Frames of each of the S sequences (0: text only)."""
    keys: list[str] = field(default_factory=list)
    """Where each sequence comes from: source/shard/key#conversation."""
    types: list[str] = field(default_factory=list)
    """Question type of each sequence, for metrics."""
    answers: list[str] = field(default_factory=list)
    """The last answer of each sequence as text, for evaluation."""
    features: dict[str, Tensor] = field(default_factory=dict)
    """`[F', T, C]` by tower: what the frozen towers made of other F' frames beforehand, merged."""
    from_features: list[bool] = field(default_factory=list)
    """Which of the S sequences have their frames in `features`, all of them; empty: none."""
    goes_on: list[bool] = field(default_factory=list)
    """Which of the S sequences begin with the frames of the one before them, that are here once; empty: none."""

    def __post_init__(self) -> None:
        L = self.ids.shape[0]
        if not (self.labels.shape[0] == self.kind.shape[0] == L == sum(self.lengths)):
            raise ValueError(
                f"a pack's ids, labels, kind and lengths must agree, got {L}, {self.labels.shape[0]}, "
                f"{self.kind.shape[0]} and a sum of {sum(self.lengths)}"
            )

    @property
    def num_frames(self) -> int:
        """Frames of the stream, those of features and those that several sequences share among them."""
        return sum(self.frame_counts)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, those of `features` as `features.<tower>`."""
        found = {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return found | {f"features.{tower}": v for tower, v in self.features.items()}

    def rest(self) -> dict[str, Any]:
        """The fields without tensors."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "features"}
        return {name: v for name, v in values.items() if not isinstance(v, Tensor)}

    @staticmethod
    def of(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> Pack:
        """The pack that had these `tensors()` and this `rest()`."""
        own = {name: v for name, v in tensors.items() if not name.startswith("features.")}
        features = {name.removeprefix("features."): v for name, v in tensors.items() if name not in own}
        return Pack(**own, **rest, features=features)

    def to(self, device: torch.device | str) -> Pack:
        moved = {k: v.to(device, non_blocking=True) for k, v in self.tensors().items() if k != "frame_times"}
        there = Pack.of(moved | {"frame_times": self.frame_times}, self.rest())
        order = self.frame_order
        # Counted here, usually on the host, so that no step waits for the device to count.
        there.__dict__.update(
            num_labels=self.num_labels,
            num_vision=self.num_vision,
            text_runs=self.text_runs,
            frame_order=None if order is None else order.to(device, non_blocking=True),
        )
        return there

    def pin_memory(self) -> Pack:
        pinned = {k: v.pin_memory() for k, v in self.tensors().items() if k != "frame_times"}
        return Pack.of(pinned | {"frame_times": self.frame_times}, self.rest())

    @staticmethod
    def join(parts: Sequence[Pack], cat: Callable[[list[Tensor]], Tensor] = torch.cat) -> Pack:
        """Concatenate packs into one, frames with `cat`; the sequences stay separate."""
        return Pack(
            ids=torch.cat([p.ids for p in parts]),
            labels=torch.cat([p.labels for p in parts]),
            kind=torch.cat([p.kind for p in parts]),
            lengths=[n for p in parts for n in p.lengths],
            frames=cat([p.frames for p in parts]),
            frame_times=torch.cat([p.frame_times for p in parts]),
            frame_counts=[n for p in parts for n in p.frame_counts],
            keys=[k for p in parts for k in p.keys],
            types=[t for p in parts for t in p.types],
            answers=[a for p in parts for a in p.answers],
            features={
                tower: torch.cat([p.features[tower] for p in parts if p.features])
                for tower in next((p.features for p in parts if p.features), {})
            },
            from_features=[b for p in parts for b in p.from_features or [False] * len(p.lengths)],
            goes_on=[b for p in parts for b in p.goes_on or [False] * len(p.lengths)],
        )

    @staticmethod
    def blank(image_size: int) -> Pack:
        """One unsupervised token: keeps a rank in step when all samples of a pack were unreadable."""
        one = torch.zeros(1, dtype=torch.int64)
        return Pack(
            ids=one,
            labels=one + IGNORE,
            kind=torch.zeros(1, dtype=torch.uint8),
            lengths=[1],
            frames=torch.zeros(0, 3, image_size, image_size, dtype=torch.uint8),
            frame_times=torch.zeros(0, dtype=torch.float64),
            frame_counts=[0],
        )

    @cached_property
    def frame_order(self) -> Tensor | None:
        """`[F + F']` int64: where each frame of the stream stands in `frames` and then `features`; None: in order."""
        mixed = bool(self.features) and len(self.frames) > 0
        if not mixed and not any(self.goes_on):
            return None
        stored, shared = (flags or [False] * len(self.lengths) for flags in (self.from_features, self.goes_on))
        ends = [0, len(self.frames)] if mixed else [0, 0]  # of what is encoded, and of features behind it
        parts: list[Tensor] = []
        for count, is_stored, is_shared in zip(self.frame_counts, stored, shared):
            before = parts[-1] if is_shared else torch.zeros(0, dtype=torch.int64)
            start = ends[is_stored]
            ends[is_stored] += count - len(before)
            parts.append(torch.cat([before, torch.arange(start, ends[is_stored])]))
        return torch.cat(parts)

    @cached_property
    def num_labels(self) -> int:
        """Supervised positions."""
        return int((self.labels != IGNORE).sum())

    @cached_property
    def num_vision(self) -> int:
        """Vision positions; T for each frame."""
        return int((self.kind == Kind.VISION).sum())

    @cached_property
    def text_runs(self) -> list[list[TextRun]]:
        """The text of each of the S sequences."""
        return text_runs(self.kind, self.lengths)

    @property
    def vision_groups(self) -> list[list[int]]:
        """Vision tokens of the media of each turn, of each of the S sequences."""
        return all_vision_groups(self.text_runs, self.lengths)


@dataclass
class Lost:
    """A sample that could not be used, or not wholly, and why."""

    source: str
    key: str
    reason: str


@dataclass
class StepBatch:
    """One rank's share of one optimizer step."""

    step: int
    packs: list[Pack]
    used: dict[str, int] = field(default_factory=dict)
    """Samples used, by source; replacements not counted."""
    skipped: list[Lost] = field(default_factory=list)
    """Samples that could not be used."""
    truncated: list[Lost] = field(default_factory=list)
    """Used samples of which some frames could not be decoded."""
    replaced: dict[str, int] = field(default_factory=dict)
    """Skipped samples for which another one of their source stood in, by source."""
    away: str = ""
    """Why the step could not be read at all, which is no sample's fault: a store is away. Its packs are blank then."""

    @staticmethod
    def join(parts: Sequence[StepBatch]) -> StepBatch:
        """All of it that was read in parts: lists behind each other, counts summed, of words the first."""

        def joined(values: list[Any]) -> Any:
            if isinstance(values[0], dict):
                return dict(sum(map(Counter, values), Counter()))
            return [*chain(*values)] if isinstance(values[0], list) else next(filter(None, values), values[0])

        return StepBatch(**{f.name: joined([getattr(part, f.name) for part in parts]) for f in fields(StepBatch)})

    def pin_memory(self) -> StepBatch:
        return replace(self, packs=[p.pin_memory() for p in self.packs])

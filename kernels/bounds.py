"""Where the sequences of a packed stream begin and end."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from timeviper.kernels.host import on_device


class Bounds:
    """The boundaries of S sequences packed into one stream of L tokens.

    The lengths are kept twice, on the host (to plan loops, sizes and kernel launches without a
    device synchronisation) and on the device (to compute with). Zero-length sequences are allowed:
    a stream of keys may hold nothing for some of its queries.
    """

    def __init__(self, lengths: Iterable[int], device: torch.device | str = "cpu") -> None:
        self.lengths: tuple[int, ...] = tuple(int(n) for n in lengths)
        if any(n < 0 for n in self.lengths):
            raise ValueError(f"sequence lengths must not be negative, got {self.lengths}")
        self.device = torch.device(device)

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: Tensor) -> Bounds:
        """From int offsets `[S+1]` that start at 0 (one synchronisation if they are on a GPU)."""
        offsets = cu_seqlens.tolist()
        if not offsets or offsets[0] != 0:
            raise ValueError(f"cu_seqlens must start with 0, got {offsets[:4]}")
        return cls((b - a for a, b in pairwise(offsets)), cu_seqlens.device)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Host offsets, S+1 of them; the last is L."""
        return tuple(accumulate(self.lengths, initial=0))

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """`[S+1]` int32 on the device."""
        return on_device(self.offsets, self.device, torch.int32)

    @cached_property
    def seq_idx(self) -> Tensor:
        """`[L]` int64 on the device: the sequence that each token belongs to."""
        counts = on_device(self.lengths, self.device)
        ids = torch.arange(self.num_sequences, device=self.device)
        return torch.repeat_interleave(ids, counts, output_size=self.num_tokens)

    @cached_property
    def position(self) -> Tensor:
        """`[L]` int64 on the device: each token's place in its own sequence, from 0."""
        starts = self.cu_seqlens[:-1].long()[self.seq_idx]
        return torch.arange(self.num_tokens, device=self.device) - starts

    @cached_property
    def cache(self) -> dict[Hashable, Any]:
        """What kernels derive from the bounds (layouts, index tensors), kept for the next layer."""
        return {}

    @property
    def num_tokens(self) -> int:
        return self.offsets[-1]

    @property
    def num_sequences(self) -> int:
        return len(self.lengths)

    @property
    def max_length(self) -> int:
        return max(self.lengths, default=0)

    def to(self, device: torch.device | str) -> Bounds:
        return self if torch.device(device) == self.device else Bounds(self.lengths, device)

    def __repr__(self) -> str:
        return f"Bounds({list(self.lengths)}, device={str(self.device)!r})"


def of_first(state: Tensor, bounds: Bounds) -> Tensor:
    """`[1, ...]`, what the first sequence brings along, as states `[S, ...]` of all: the others begin with zeros."""
    rest = bounds.num_sequences - 1
    return torch.cat([state, state.new_zeros(rest, *state.shape[1:])]) if rest else state

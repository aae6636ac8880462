"""How a packed stream is cut into chunks for the chunked scan."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from timeviper.kernels.bounds import Bounds
from timeviper.kernels.host import on_device


@dataclass(frozen=True)
class Tile:
    """Chunks that are computed together."""

    first: int
    last: int
    rows: slice  # of the aligned stream
    q: int  # tokens of each chunk
    waves: tuple[tuple[int, int, int], ...]
    """(chunk, low, high): from that chunk of the tile on, the next one of each sequence ranked [low, high)."""

    @property
    def n(self) -> int:
        return self.last - self.first


@dataclass(frozen=True)
class ChunkLayout:
    """How a pack is laid out in chunks of one sequence each.

    Sequences are ranked by their number of chunks, falling; chunks are ordered by their place in the
    sequence, then by rank: a wave of chunks for every place. The sequences that still run at a place are the
    first ones, so that the states carried into a wave are a slice.
    """

    size: int  # tokens a chunk
    chunks: int
    widths: tuple[int, ...]  # sequences that have a chunk at place 0, 1, ...
    slots: Tensor | None  # [L] row of each token in the aligned stream; None: the stream as it is
    ranked: Tensor | None  # [S] sequences by rank; None: as they are

    @classmethod
    def of(cls, bounds: Bounds, size: int) -> ChunkLayout:
        counts = [-(-n // size) for n in bounds.lengths]
        order = sorted(range(len(counts)), key=lambda s: -counts[s])
        widths, running = [], len(counts)
        for place in range(counts[order[0]]):
            # Ranked by falling number of chunks: those that have ended are the last ones.
            while counts[order[running - 1]] <= place:
                running -= 1
            widths.append(running)
        if len(counts) == 1:
            return cls(size, sum(counts), tuple(widths), None, None)
        S, ranks = len(order), sorted(order, key=order.__getitem__)  # the inverse of `order`
        joined = on_device([*ranks, *order, *accumulate(widths, initial=0)], bounds.device)  # one copy for all
        rank, ranked, starts = joined.split([S, S, len(widths) + 1])
        place, within = bounds.position // size, bounds.position % size
        slots = (starts[place] + rank[bounds.seq_idx]) * size + within
        return cls(size, sum(counts), tuple(widths), slots, None if order == sorted(order) else ranked)

    def tiles(self, limit: int, rows: int) -> list[Tile]:
        """All chunks in order, at most `limit` a tile; a stream that is not aligned may end in a short chunk,
        which is then a tile of its own."""
        # A wave with too many sequences is cut; then waves join as long as the tile does not overflow.
        pieces = [(low, min(low + limit, w)) for w in self.widths for low in range(0, w, limit)]
        grouped: list[list[tuple[int, int, int]]] = [[]]
        held = 0
        tail = rows % self.size
        for i, (low, high) in enumerate(pieces):
            if held + high - low > limit or (tail and i == len(pieces) - 1 and held):
                grouped.append([])
                held = 0
            grouped[-1].append((held, low, high))
            held += high - low
        tiles, first = [], 0
        for waves in grouped:
            start, low, high = waves[-1]
            last = first + start + high - low
            span = slice(first * self.size, min(last * self.size, rows))
            q = self.size if last - first > 1 else span.stop - span.start  # a chunk alone may be the short tail
            tiles.append(Tile(first, last, span, q, tuple(waves)))
            first = last
        return tiles

    def align(self, t: Tensor) -> Tensor:
        """`[L, ...]` to whole chunks, pads zero (a single sequence needs none)."""
        if self.slots is None:
            return t
        return t.new_zeros(self.chunks * self.size, *t.shape[1:]).index_copy_(0, self.slots, t)

    def restore(self, t: Tensor) -> Tensor:
        return t if self.slots is None else t.index_select(0, self.slots)

"""Blocks of a remote shard that will be read, asked for before they are: merged, and several requests at a time.

Waiting costs far more than bytes: at 50 ms an answer, 256 frames of an hour are 13 s one after the other, and below one
when 16 are asked for at once. Who reads knows what comes next (`expect`); what nobody foresaw is asked for when it is
needed (`get`). At most 16 answers of 1 MiB are held.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import groupby

from timeviper.datamodules.remote.block_cache import BlockCache
from timeviper.datamodules.remote.storage import begin_range
from timeviper.datamodules.shards.block_sums import FileBlock

REQUESTS = 16  # under way at a time, of one sample: a process reads one at a time
PIECE = 1 << 20  # bytes; the most that one request asks for
GAP = 1 << 15  # bytes between two blocks that are asked for as well: FFmpeg reads over as much where it skips it
HELD = 4 * PIECE  # bytes of blocks in memory that have arrived


@dataclass
class _Wanted:
    """Blocks that are asked for together."""

    blocks: Sequence[FileBlock]
    found: dict[FileBlock, bytes] = field(default_factory=dict)
    """Those that the cache had."""
    answers: list[tuple[Sequence[FileBlock], Future[bytes]]] = field(default_factory=list)


class Ahead:
    """Blocks of one shard, for whoever reads one sample of it. Not for several threads."""

    def __init__(self, shard: str, cache: BlockCache) -> None:
        self.shard, self.cache = shard, cache
        self._planned: deque[Sequence[FileBlock]] = deque()
        self._begun: deque[_Wanted] = deque()
        self._held: OrderedDict[FileBlock, bytes] = OrderedDict()
        self._held_bytes = 0
        self._damaged: Counter[FileBlock] = Counter()  # how often each has come so

    def expect(self, blocks: Iterable[FileBlock]) -> None:
        """These will be read, in about this order, in place of what was expected before and not yet asked for."""
        known = set(self._held).union(*(wanted.blocks for wanted in self._begun))
        self._planned = deque(merged([block for block in blocks if block not in known]))
        self._fill()

    def get(self, block: FileBlock, others: Sequence[FileBlock] = ()) -> bytes | None:
        """The bytes of a block, waited for; None if they are not what they should be, asked for twice.

        `others`: what is asked for with it where nobody expected it. StorageError if it cannot be read.
        """
        while block not in self._held and self._damaged[block] < 2:
            if not self._await(block):
                more = () if self._damaged[block] else others
                self._absorb(self._asked([block, *(b for b in more if b not in self._held)]))
        if (data := self._held.get(block)) is not None:
            self._held.move_to_end(block)
        return data

    def has(self, block: FileBlock) -> bool:
        """Whether `get` would give it at once."""
        return block in self._held

    def close(self) -> None:
        """Nothing more is wanted."""
        for wanted in self._begun:
            for _, answer in wanted.answers:
                answer.cancel()
        self._planned, self._begun, self._held, self._held_bytes = deque(), deque(), OrderedDict(), 0

    def _await(self, block: FileBlock) -> bool:
        """Take what has been asked for, up to the answer with this block in it; whether there was one."""
        for blocks in self._planned:
            if block in blocks:  # it is read before its turn
                self._planned.remove(blocks)
                self._begun.appendleft(self._asked(blocks))
                break
        asked = any(block in wanted.blocks for wanted in self._begun)
        while asked and self._begun:
            wanted = self._begun.popleft()
            self._absorb(wanted)
            if block in wanted.blocks:
                break
        self._fill()
        return asked

    def _fill(self) -> None:
        while self._planned and len(self._begun) < REQUESTS:
            self._begun.append(self._asked(self._planned.popleft()))

    def _asked(self, blocks: Sequence[FileBlock]) -> _Wanted:
        """Look into the cache, and begin requests for the rest."""
        wanted = _Wanted(blocks, self.cache.get(self.shard, blocks))
        for missing, run in groupby(blocks, lambda block: block not in wanted.found):
            if missing:
                part = list(run)
                answer = begin_range(self.shard, part[0].offset, part[-1].end, self.cache.patience)
                wanted.answers.append((part, answer))
        return wanted

    def _absorb(self, wanted: _Wanted) -> None:
        """Wait for the answers; what is sound is held, and kept in the cache."""
        for block, data in wanted.found.items():
            self._hold(block, data)
        for blocks, answer in wanted.answers:
            data = memoryview(answer.result())
            start = blocks[0].offset
            pieces = {block: bytes(data[block.offset - start : block.end - start]) for block in blocks}
            sound = {block: piece for block, piece in pieces.items() if block.holds(piece)}
            self._damaged.update(pieces.keys() - sound.keys())
            self.cache.put(self.shard, sound)
            for block, piece in sound.items():
                self._hold(block, piece)

    def _hold(self, block: FileBlock, data: bytes) -> None:
        if block not in self._held:
            self._held_bytes += block.size
        self._held[block] = data
        while self._held_bytes > HELD and len(self._held) > 1:
            old, _ = self._held.popitem(last=False)
            self._held_bytes -= old.size


def merged(blocks: Sequence[FileBlock]) -> list[Sequence[FileBlock]]:
    """Requests for these blocks: neighbours together, in the order in which the first of each is wanted."""
    rank: dict[FileBlock, int] = {}
    for number, block in enumerate(blocks):
        rank.setdefault(block, number)
    runs: list[list[FileBlock]] = []
    for block in sorted(rank):
        run = runs[-1] if runs else None
        if run and block.offset - run[-1].end <= GAP and block.end - run[0].offset <= PIECE:
            run.append(block)
        else:
            runs.append([block])
    return sorted(runs, key=lambda run: min(rank[block] for block in run))

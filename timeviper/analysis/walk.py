"""A pack on its way through the blocks, so that many continuations share what comes before their first difference."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from timeviper.config.shape import Segment
from timeviper.kernels.bounds import Bounds
from timeviper.model.decoder import Decoder
from timeviper.model.transv import Stream
from timeviper.pack import IGNORE, Pack


class Walk:
    """The stream before block `at`, where the decoder's stages have run as they stand; goes one way.

    Holds one stream `[l, D]`, whatever is asked of it. Within it the decoder must not change its stages.
    """

    def __init__(self, decoder: Decoder, x: Tensor, pack: Pack) -> None:
        """x `[L, D]`: the embedded pack."""
        bounds, index = Bounds(pack.lengths, x.device), torch.arange(len(x), device=x.device)
        self.decoder, self.pack, self.at = decoder, pack, 0
        decoder.check_lengths(bounds, None)
        self.stream = Stream(x, bounds, pack.kind, pack.vision_groups, index, pack.text_runs)

    def to(self, block: int) -> Stream:
        """Go on to a block; the stage before it, if any, has not run yet. ValueError for one that lies behind."""
        if block < self.at:
            raise ValueError(f"block {block} lies behind: the walk is at {self.at}")
        self.stream, self.at = self._go(self.stream, self.at, block), block
        return self.stream

    def end(self, stream: Stream | None = None) -> Tensor:
        """Hidden states `[M, D]` at the labels of the pack behind the last block and the final norm, from here on;
        `stream`: in place of what stands here."""
        last = self._go(self.stream if stream is None else stream, self.at, len(self.decoder.blocks))
        where = torch.nonzero_static(self.pack.labels[last.index] != IGNORE, size=self.pack.num_labels).squeeze(1)
        return self.decoder.norm_f(last.x).index_select(0, where)

    def _go(self, stream: Stream, start: int, stop: int) -> Stream:
        """Blocks `start` to before `stop`, and the stages between."""
        decoder, stream = self.decoder, replace(stream)
        for segment in decoder.segments:
            if segment.stage is not None and start <= segment.blocks.start < stop:
                self._tell(segment, stream)
                stream = decoder.pass_stage(stream, segment, self.pack.vision_groups)
            blocks = range(max(start, segment.blocks.start), min(stop, segment.blocks.stop))
            if blocks:
                self._tell(segment, stream)
                stream.x = decoder.run(replace(segment, blocks=blocks), stream.x, stream.bounds, None)
        return stream

    def _tell(self, segment: Segment, stream: Stream) -> None:
        if self.decoder.watcher is not None:
            self.decoder.watcher(segment, stream)

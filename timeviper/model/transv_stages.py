"""The TransV stages of a live model: what they keep now, and other ones for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from timeviper.config import TransVConfig
from timeviper.config.shape import cut_layout
from timeviper.model.decoder import Decoder


def set_transv(model: nn.Module, transv: TransVConfig) -> None:
    """Change what the stages keep, as a curriculum does; their layers and parameters stay. A tower alone has none."""
    for decoder in model.modules():
        if isinstance(decoder, Decoder):
            decoder.segments = cut_layout(decoder.cfg.layout, transv)


def transv_in_use(model: nn.Module, transv: TransVConfig) -> TransVConfig:
    """`transv` with the stages that the model runs at this moment, which a curriculum changes; a tower alone: as is."""
    for decoder in model.modules():
        if isinstance(decoder, Decoder):
            return replace(transv, stages={s.name: s.stage for s in decoder.segments if s.stage is not None})
    return transv


@contextmanager
def other_stages(model: nn.Module, transv: TransVConfig) -> Iterator[None]:
    """Within it the model runs the stages of `transv`, which must be some of its own."""
    before = [(d, d.segments) for d in model.modules() if isinstance(d, Decoder)]
    set_transv(model, transv)
    try:
        yield
    finally:
        for decoder, segments in before:
            decoder.segments = segments

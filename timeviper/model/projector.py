"""From the encoder's feature space to the decoder's."""

from __future__ import annotations

from torch import nn


class Projector(nn.Sequential):
    """Linear, GELU, Linear (paper 3.1): `[..., tower width]` -> `[..., decoder width]`."""

    def __init__(self, tower_width: int, width: int) -> None:
        super().__init__(nn.Linear(tower_width, width), nn.GELU(), nn.Linear(width, width))

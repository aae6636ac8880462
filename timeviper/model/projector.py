"""From the encoder's feature space to the decoder's."""

from __future__ import annotations

from torch import Tensor, nn

from timeviper.kernels.bounds import Bounds
from timeviper.model.pieces import Piece, Weights, cut, run_in_pieces


class Projector(nn.Sequential):
    """Linear, GELU, Linear (paper 3.1): `[..., tower width]` -> `[..., decoder width]`."""

    def __init__(self, tower_width: int, width: int) -> None:
        super().__init__(nn.Linear(tower_width, width), nn.GELU(), nn.Linear(width, width))

    def in_pieces(self, size: int, weights: Weights, x: Tensor) -> Tensor:
        """`forward` of frames `[F, T, C]` in training, which keeps x and is computed again for as many frames at a
        time as have `size` tokens (0: all)."""

        def run(rows: Tensor, piece: Piece, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            return self(rows), ()

        frames = max(size // x.shape[1], 1) if size else 0
        return run_in_pieces(self, run, tuple, x, cut(Bounds([len(x)], x.device), frames), weights)

"""Vision encoders: uint8 frames in, features out.

Letters: F frames, N patches of a frame, T tokens of a frame after merging, C channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from timeviper.config import TowerConfig
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.host import on_device
from timeviper.model.pieces import Piece, Weights, cut, run_in_pieces
from timeviper.model.vision.tome import merge

# A frozen encoder sees exactly this many frames at a time. Not more, so that the activations of an hour of video
# never exist at once (32 frames of SigLIP at 384 pixels take about 0.75 GB in bfloat16). Not fewer, because products
# and elementwise functions choose their way by shape: alone, a frame comes out with other last bits than in a batch,
# and features that were stored (datamodules/frames/stored.py) would not be those of training.
FRAMES_PER_CHUNK = 32

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # mean and std of red, green, blue
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Tower(nn.Module):
    """What all encoders share: sizes, frames to pixels, chunks.

    A family is a file beside this one with its name, whose `TOWER` is a subclass that defines `features`. Its blocks
    are those of a plain ViT, as far as the plan's figures shall hold.
    """

    normalisation = HALF
    fills_children = True  # `reset_parameters` is for all modules inside
    layer_scale = False
    """Whether blocks scale what they add by learned gains (for the plan: the scaled is kept)."""

    def __init__(self, cfg: TowerConfig) -> None:
        super().__init__()
        self.image_size = cfg.image_size
        self.width = cfg.width
        self.num_patches = cfg.patches

    def features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels `[F, 3, R, R]` -> `[F, N, C]`, without class or register tokens."""
        raise NotImplementedError

    @staticmethod
    def extra_tokens(cfg: TowerConfig) -> int:
        """Class and register tokens, before the patches."""
        return 0

    @staticmethod
    def stem_maps(cfg: TowerConfig) -> list[tuple[int, int, int]]:
        """(pixels out, channels in times kernel, channels out) of each convolution from the image to the patches."""
        return [(cfg.patches, 3 * cfg.patch_size**2, cfg.width)]

    @staticmethod
    def stem_saved(cfg: TowerConfig, a: int) -> int:
        """Bytes that autograd keeps of a frame between its pixels and the first block, `a` a number."""
        return 0

    @classmethod
    def load_weights(cls, cfg: TowerConfig) -> dict[str, Tensor]:
        """State dict from the Hugging Face folder `cfg.weights`, float32, on the CPU."""
        raise ValueError(f"weights: {cfg.weights}: nobody else has {cfg.family} towers; leave it empty")

    def forward(self, frames: Tensor, tokens: int | None = None) -> Tensor:
        """uint8 `[F, 3, H, W]` -> `[F, N, C]`, or `[F, tokens, C]` merged where `tokens` is given.

        Frozen, or where no gradients are wanted, it merges chunk by chunk, so that the features of all patches
        of a long video (17 GB for 10,000 frames of SigLIP) are never held; and a frame's result depends on no
        other frame, to the last bit. One call a pack whatever the number of frames, 0 included: under sharding
        every rank gathers this module's weights equally often.
        """
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            return self._encode(frames, tokens)
        with torch.no_grad():
            if frames.shape[0] == 0:
                shape = (0, self.num_patches if tokens is None else tokens, self.width)
                return torch.empty(shape, dtype=next(self.parameters()).dtype, device=frames.device)
            return torch.cat([self._whole_chunk(part, tokens) for part in frames.split(FRAMES_PER_CHUNK)])

    def in_pieces(self, size: int, weights: Weights, frames: Tensor, tokens: int | None = None) -> Tensor:
        """`forward` in training, which keeps the frames alone and is computed again for as many of them at a time as
        have `size` patches (0: a chunk)."""

        def run(part: Tensor, piece: Piece, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            return self._encode(part, tokens), ()

        pieces = cut(Bounds([frames.shape[0]], frames.device), frames_at_a_time(size, self.num_patches))
        return run_in_pieces(self, run, tuple, frames, pieces, weights)

    def _whole_chunk(self, frames: Tensor, tokens: int | None) -> Tensor:
        """At most a chunk of frames, filled up with blank ones."""
        count, *shape = frames.shape
        blank = frames.new_zeros(FRAMES_PER_CHUNK - count, *shape)
        return self._encode(torch.cat([frames, blank]) if len(blank) else frames, tokens)[:count]

    def _encode(self, frames: Tensor, tokens: int | None) -> Tensor:
        if frames.shape[0] == 0:  # attention of transformers cannot reshape nothing
            return self._encode(frames.new_zeros(1, 3, self.image_size, self.image_size), tokens)[:0]
        dtype = next(self.parameters()).dtype
        features = self.features(to_pixels(frames, self.image_size, self.normalisation).to(dtype))
        return features if tokens is None else merge(features, tokens)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random weights: matrices and tables normal with std fan_in^-0.5, gains 1, biases 0."""
        for name, p in self.named_parameters():
            if p.ndim == 1:
                nn.init.constant_(p, 0.0 if name.endswith("bias") else 1.0)
            else:
                nn.init.normal_(p, std=math.prod(p.shape[1:]) ** -0.5)


def frames_at_a_time(size: int, patches: int) -> int:
    """Frames that an encoder differentiates together, for a piece of `size` tokens (0: whole)."""
    return max(size // patches, 1) if size else FRAMES_PER_CHUNK


def to_pixels(frames: Tensor, size: int, normalisation: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """uint8 `[F, 3, H, W]` -> float32 `[F, 3, size, size]`, normalised.

    Frames of another size are squashed to the square, bicubic with antialiasing, and rounded to whole
    levels, as if the file had had this size.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8:
        raise ValueError(f"frames must be uint8 [F, 3, H, W], got {frames.dtype} {list(frames.shape)}")
    x = frames.float()
    if frames.shape[2:] != (size, size):
        x = nnf.interpolate(x, (size, size), mode="bicubic", antialias=True).round().clamp(0, 255)
    mean, std = on_device(normalisation, x.device, x.dtype).view(2, 3, 1, 1)  # [3, 1, 1]: a colour each
    return (x / 255 - mean) / std


def blocks_needed(cfg: TowerConfig) -> int:
    """Blocks up to the one whose output is the feature; the rest of the encoder is never built."""
    if not -cfg.layers <= cfg.feature_layer <= -1:
        raise ValueError(
            f"feature_layer counts blocks from the end: -1 (the last) to -{cfg.layers} for an encoder of "
            f"{cfg.layers} layers, got {cfg.feature_layer}"
        )
    return cfg.layers + 1 + cfg.feature_layer

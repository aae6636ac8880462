"""A small ViT of our own, which learns fast from little: the tower of the tiny recipes."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from timeviper.config import TowerConfig
from timeviper.model.vision.tower import Tower, blocks_needed


class ViTBlock(nn.Module):
    """Pre-norm transformer block without a mask: `[F, N, C]` -> `[F, N, C]`."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_width), nn.GELU(), nn.Linear(mlp_width, width))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1))  # [F, N, 3, heads, size]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [F, heads, N, size] each
        mixed = nnf.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [F, N, C]
        x = x + self.proj(mixed)
        return x + self.mlp(self.norm2(x))


class ViT(Tower):
    """A small ViT that learns fast from little: strided convolutions see edges before attention starts.

    Early convolutions: Xiao et al., arXiv 2106.14881. Each 3x3 convolution halves the image, widths
    double up to `width`; group normalisation, because batches may be a single frame.
    """

    def __init__(self, cfg: TowerConfig) -> None:
        super().__init__(cfg)
        halvings = cfg.patch_size.bit_length() - 1
        if cfg.patch_size != 1 << halvings or cfg.image_size % cfg.patch_size or cfg.width % cfg.heads:
            raise ValueError(
                f"a vit tower needs a patch_size that is a power of two and divides image_size, and a width "
                f"that heads divide, got patch_size={cfg.patch_size}, image_size={cfg.image_size}, "
                f"width={cfg.width}, heads={cfg.heads}"
            )
        widths = stem_widths(cfg)
        stem: list[nn.Module] = []
        for c_in, c_out in pairwise(widths):
            stem += [nn.Conv2d(c_in, c_out, 3, stride=2, padding=1), nn.GroupNorm(1, c_out), nn.GELU()]
        self.stem = nn.Sequential(*stem, nn.Conv2d(widths[-1], cfg.width, 1))
        self.positions = nn.Parameter(torch.empty(self.num_patches, cfg.width))
        self.blocks = nn.ModuleList(ViTBlock(cfg.width, cfg.heads, cfg.mlp_width) for _ in range(blocks_needed(cfg)))
        self.reset_parameters()

    def features(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels).flatten(2).transpose(1, 2) + self.positions  # [F, C, h, w] -> [F, N, C]
        for block in self.blocks:
            x = block(x)
        return x

    @staticmethod
    def stem_maps(cfg: TowerConfig) -> list[tuple[int, int, int]]:
        size, widths = cfg.image_size, stem_widths(cfg)
        maps = []
        for c_in, c_out in pairwise(widths):
            size = (size + 1) // 2
            maps.append((size * size, 9 * c_in, c_out))
        return [*maps, (cfg.patches, widths[-1], cfg.width)]

    @staticmethod
    def stem_saved(cfg: TowerConfig, a: int) -> int:
        """Of each strided convolution the inputs of group norm, GELU and what follows; the norm's statistics."""
        *strided, _ = ViT.stem_maps(cfg)
        return sum(3 * a * pixels * c_out + 2 * a for pixels, _, c_out in strided)


def stem_widths(cfg: TowerConfig) -> list[int]:
    """Channels before and after every strided convolution of the stem of `ViT`."""
    halvings = cfg.patch_size.bit_length() - 1
    return [3, *(max(cfg.width >> i, 8) for i in range(halvings - 1, -1, -1))]


TOWER = ViT

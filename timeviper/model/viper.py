"""TimeViper: vision towers, token merging, projectors, and the hybrid decoder with token transfer.

Letters: L tokens of a pack, S sequences, F frames, T tokens a frame, D decoder width, M labels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from timeviper.config import ModelConfig
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.cross_entropy import linear_cross_entropy
from timeviper.kernels.divergence import linear_divergence
from timeviper.model.decoder import Decoder, DecoderOutput
from timeviper.model.frame_times import FrameTimes
from timeviper.model.parts import Parts, part_of
from timeviper.model.projector import Projector
from timeviper.model.state import DecoderState
from timeviper.model.vision.build import build_tower
from timeviper.pack import IGNORE, Kind, Pack

__all__ = ["TimeViper", "ViperOutput", "part_of"]


@dataclass
class ViperOutput:
    """What one pack gives."""

    loss_sum: Tensor
    """float32 scalar: the sum over labels, to be divided by the count over all packs of the step."""
    num_labels: int
    correct: Tensor
    """`[M]` bool: whether the most probable token was the label."""
    label_index: Tensor
    """`[M]` int64: where in the pack's stream each label stands."""
    decoder: DecoderOutput | None = None
    logits: Tensor | None = None
    """`[S, V]` float32 after the last token of each sequence, where asked for."""
    label_logits: Tensor | None = None
    """`[M, V]` float32 that predict each label, where asked for."""
    divergence_sum: Tensor | None = None
    """float32 scalar beside `loss_sum`, where the model distils: how far answers are from those without TransV, times
    `train.distill`."""


class _Splice(torch.autograd.Function):
    """`x.index_copy(0, where, rows)`, which would keep the rows for their shape: those of all frames."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        x, where, rows = inputs
        ctx.save_for_backward(where)
        return x.index_copy(0, where, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (where,), dy = ctx.saved_tensors, grads[0]
        wants_x, _, wants_rows = ctx.needs_input_grad
        return dy.index_fill(0, where, 0) if wants_x else None, None, dy[where] if wants_rows else None


class TimeViper(Parts):
    """Every use of the weights goes through `forward`: sharding hooks live there and nowhere else."""

    def __init__(self, cfg: ModelConfig, frame_times: bool = False) -> None:
        """frame_times: the tokens of a frame tell when it is shown (`chat.time: tokens`)."""
        super().__init__()
        towers = cfg.towers
        self.merge_to = {name: tower.tokens for name, tower in towers.items()}
        self.towers = nn.ModuleDict({name: build_tower(tower) for name, tower in towers.items()})
        self.projectors = nn.ModuleDict(
            {name: Projector(tower.width, cfg.decoder.width) for name, tower in towers.items()}
        )
        self.times = FrameTimes(cfg.decoder.width) if frame_times else None
        self.decoder = Decoder(cfg.decoder, cfg.transv)
        self.distill = 0.0  # `train.distill`; in training mode alone

    @property
    def tokens_per_frame(self) -> int:
        return sum(self.merge_to.values())

    def encode(
        self, frames: Tensor, features: Mapping[str, Tensor] | None = None, order: Tensor | None = None
    ) -> Tensor:
        """uint8 `[F, 3, H, W]` -> `[F + F', T, D]`: merged, projected, towers side by side.

        `features` `[F', T, C]` by tower and `order` `[F + F']` as in a `Pack`: frames that were encoded beforehand.
        Towers are called also without frames (see `Tower.forward`).
        """
        parts = []
        for name, tower in self.towers.items():
            x = tower(frames, self.merge_to[name])
            if features:
                x = torch.cat([x, features[name].to(x.dtype)])
            parts.append(self.projectors[name](x if order is None else x[order]))
        return torch.cat(parts, dim=1)

    def timed(self, vision: Tensor, seconds: Tensor) -> Tensor:
        """Tokens `[F, T, D]` of frames, with the seconds `[F]` (on the host) of each, if they are to tell it."""
        return vision if self.times is None else vision + self.times(seconds)[:, None].to(vision.dtype)

    def embed(self, pack: Pack) -> Tensor:
        """The decoder's input `[L, D]`: token embeddings, with the frames' tokens at vision positions."""
        x = self.decoder.embed(pack.ids)
        if not self.towers:
            return x
        vision = self.encode(pack.frames, pack.features, pack.frame_order)
        vision = self.timed(vision, pack.frame_times).flatten(0, 1)  # [F * T, D]
        if pack.num_vision != vision.shape[0]:
            raise ValueError(
                f"the pack has {pack.num_vision} vision positions, but {pack.num_frames} frames of "
                f"{self.tokens_per_frame} tokens make {vision.shape[0]} (sequences: {pack.keys[:3]})"
            )
        where = torch.nonzero_static(pack.kind == Kind.VISION, size=pack.num_vision).squeeze(1)
        return _Splice.apply(x, where, vision.to(x.dtype))  # pyright: ignore[reportReturnType]

    def forward(
        self, pack: Pack, state: DecoderState | None = None, last_logits: bool = False, label_logits: bool = False
    ) -> ViperOutput:
        """Loss at the labels of a pack, and on request the logits that follow each sequence or predict each label."""
        x = self.embed(pack)
        taught = self._taught(x, pack) if self.distill and self.training else None
        out = self.decoder(x, Bounds(pack.lengths, x.device), pack.kind, state, pack.text_runs)
        labels = pack.labels[out.index]  # [L'], of the tokens that are left
        where = torch.nonzero_static(labels != IGNORE, size=pack.num_labels).squeeze(1)
        answers, head = out.hidden.index_select(0, where), self.decoder.head_weight
        loss_sum, correct = linear_cross_entropy(answers, head, labels[where])
        divergence = None if taught is None else self.distill * linear_divergence(answers, taught, head)
        logits = None
        if last_logits:
            logits = self.decoder.project(out.hidden[out.bounds.cu_seqlens[1:].long() - 1])  # last of each sequence
        predicting = self.decoder.project(answers) if label_logits else None
        return ViperOutput(loss_sum, pack.num_labels, correct, out.index[where], out, logits, predicting, divergence)

    @torch.no_grad()
    def _taught(self, x: Tensor, pack: Pack) -> Tensor:
        """What the same weights make of the labels' tokens where no stage drops anything, `[M, D]`."""
        hidden = self.decoder(x.detach(), Bounds(pack.lengths, x.device)).hidden
        where = torch.nonzero_static(pack.labels != IGNORE, size=pack.num_labels).squeeze(1)
        return hidden.index_select(0, where)

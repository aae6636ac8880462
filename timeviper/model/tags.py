"""Stage 0: a tower learns to see by naming what its patches show.

Every patch feature predicts the words of the image's caption; the caption's tokens are the classes. That
captions can serve as classification labels is SuperClass (arXiv 2411.03313); here the prediction is pooled
from patches instead of made from a class token, so that each patch comes to name what lies on it, which
is what token merging and the decoder then work with.
Letters: L tokens of a pack, S sequences, F frames, N patches of a frame, C channels, M labels, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from timeviper.config import ModelConfig
from timeviper.datamodules.sample import IGNORE, Pack
from timeviper.kernels.bounds import Bounds
from timeviper.model.parts import Parts
from timeviper.model.viper import ViperOutput
from timeviper.model.vision import build_tower


class TagModel(Parts):
    """Towers with one linear head each, which is dropped afterwards: only `towers.` is handed on."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        towers = {name: tower for name, tower in cfg.towers.items() if tower is not None}
        if not towers:
            raise ValueError("train.objective is tags, but model.towers is empty: there is no tower to train")
        self.towers = nn.ModuleDict({name: build_tower(tower) for name, tower in towers.items()})
        self.tags = nn.ModuleDict(
            {name: nn.Linear(tower.width, cfg.decoder.vocab_size) for name, tower in towers.items()}
        )

    def reset_parameters(self) -> None:
        for module in (*self.towers.values(), *self.tags.values()):
            module.reset_parameters()  # type: ignore[operator]

    def forward(self, pack: Pack) -> ViperOutput:
        """Bag-of-words likelihood of each sequence's labels given its frames, in any order.

        The same output as `TimeViper`; `correct`: a label of a sequence with m labels is among the m
        most probable words.
        """
        logits = self.frame_logits(pack.frames)
        counts = torch.tensor(pack.frame_counts, device=logits.device)
        frame_of = nnf.one_hot(Bounds(pack.frame_counts, logits.device).seq_idx, len(pack.lengths)).float()
        pooled = frame_of.T @ logits / counts.clamp(min=1).unsqueeze(1)  # [S, V]: mean over the frames

        where = torch.nonzero_static(pack.labels != IGNORE, size=pack.num_labels).squeeze(1)
        labels = pack.labels[where]
        sequence = Bounds(pack.lengths, logits.device).seq_idx[where]
        words = torch.bincount(sequence, minlength=len(pack.lengths))
        loss_sum = -pooled.log_softmax(dim=1)[sequence, labels].sum()
        rank = (pooled[sequence] > pooled[sequence, labels].unsqueeze(1)).sum(dim=1)
        return ViperOutput(loss_sum, pack.num_labels, rank < words[sequence], where)

    def frame_logits(self, frames: Tensor) -> Tensor:
        """uint8 `[F, 3, H, W]` -> `[F, V]` float32: the soft maximum over the patches of all towers.

        logsumexp minus log N: a word needs one patch that shows it, and every patch gets a gradient.
        """
        patches = [self.tags[name](tower(frames)) for name, tower in self.towers.items()]
        logits = torch.cat(patches, dim=1).float()
        return logits.logsumexp(dim=1) - math.log(logits.shape[1])

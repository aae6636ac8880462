"""Stage 0: a tower learns to see, and a projector to say it in the decoder's words.

Every token of a frame, after merging and projection, is compared with the decoder's word embeddings; the words of
the images' captions are the classes. That captions can serve as classification labels is SuperClass (arXiv
2411.03313). Here the prediction is pooled from tokens instead of made from a class token, so that each token
comes to name what it covers; features are merged first because merging averages, and what is only there before
it the decoder never sees. Stands in for the image-text training of SigLIP.
Letters: L tokens of a pack, S sequences, F frames, T tokens a frame, D decoder width, M labels, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from timeviper.config import ModelConfig
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.host import on_device
from timeviper.model.layers import Embedding
from timeviper.model.parts import Parts
from timeviper.model.projector import Projector
from timeviper.model.viper import ViperOutput
from timeviper.model.vision.build import build_tower
from timeviper.pack import IGNORE, Pack

# Scales the logits, so that tokens need not grow large to be sure of a word. Large ones would bury what the
# decoder's blocks add to them: with 4 they come out at a quarter of the size, near that of the embeddings.
SHARPNESS = 4.0


class Words(nn.Module):
    """The one module of a decoder that stage 0 needs, under the name that it has there."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embeddings = Embedding(vocab_size, width)


class TagModel(Parts):
    """Towers, projectors and the decoder's word embeddings, which all go on to stage 1."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        towers = cfg.towers
        if not towers:
            raise ValueError("train.objective is tags, but model.towers is empty: there is no tower to train")
        self.merge_to = {name: tower.tokens for name, tower in towers.items()}
        self.towers = nn.ModuleDict({name: build_tower(tower) for name, tower in towers.items()})
        self.projectors = nn.ModuleDict(
            {name: Projector(tower.width, cfg.decoder.width) for name, tower in towers.items()}
        )
        self.decoder = Words(cfg.decoder.vocab_size, cfg.decoder.width)

    def forward(self, pack: Pack) -> ViperOutput:
        """Bag-of-words likelihood of each sequence's labels given its frames, in any order.

        The same output as `TimeViper`; `correct`: a label of a sequence with m labels is among the m
        most probable words.
        """
        logits = self.frame_logits(pack.frames)
        counts = on_device(pack.frame_counts, logits.device)
        # A product: sums by index come in any order on a GPU.
        frame_of = nnf.one_hot(Bounds(pack.frame_counts, logits.device).seq_idx, len(pack.lengths)).float()  # [F, S]
        pooled = frame_of.T @ logits / counts.clamp(min=1).unsqueeze(1)  # [S, V]: mean over the frames

        where = torch.nonzero_static(pack.labels != IGNORE, size=pack.num_labels).squeeze(1)
        labels = pack.labels[where]
        sequence = Bounds(pack.lengths, logits.device).seq_idx[where]
        words = sequence.new_zeros(len(pack.lengths)).index_add(0, sequence, torch.ones_like(sequence))
        # The classes are the words of the pack's captions. With all words, those that captions never use, digits among
        # them, are pushed the same way until their embeddings are alike, and the later stages spend their time on
        # telling them apart. The price: as in every contrast within a batch, the loss depends on the cut into packs.
        unused = torch.ones(pooled.shape[1], dtype=torch.bool, device=pooled.device).index_fill(0, labels, False)
        pooled = pooled.masked_fill(unused, -torch.inf)
        loss_sum = -pooled.log_softmax(dim=1)[sequence, labels].sum()
        rank = (pooled[sequence] > pooled[sequence, labels].unsqueeze(1)).sum(dim=1)  # [M]: words more probable
        return ViperOutput(loss_sum, pack.num_labels, rank < words[sequence], where)

    def frame_logits(self, frames: Tensor) -> Tensor:
        """uint8 `[F, 3, H, W]` -> `[F, V]` float32: the soft maximum over the merged tokens of all towers.

        logsumexp minus log T: a word needs one token that shows it, and every token gets a gradient.
        """
        tokens = [self.projectors[name](tower(frames, self.merge_to[name])) for name, tower in self.towers.items()]
        logits = SHARPNESS * (torch.cat(tokens, dim=1) @ self.decoder.embeddings.weight.T).float()  # [F, T, V]
        return logits.logsumexp(dim=1) - math.log(logits.shape[1])

"""How far answers move when something is taken from a model: teacher-forced, of every sample, with bands over videos.

Letters: M labels of a pack, V vocabulary, S sequences, n samples. Of a sample with labels y_1..y_m, logits p of the
model as it is and q of the changed one,

    kl     = mean over t of sum over the vocabulary of p ln(p / q)                                nats a token
    nll    = - sum over t of ln q(y_t)                                                            nats an answer
    right  = 1 if y_t is the most probable token at every t                                       0 or 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from timeviper.inference.paired import bootstrap_interval
from timeviper.inspection.transfer import AT_A_TIME, divergence
from timeviper.kernels.bounds import Bounds
from timeviper.model.decoder import Decoder
from timeviper.pack import IGNORE, Pack

RESAMPLES = 2000  # of a band: ends of an interval that is drawn move by less than a line's width
MEASURES = ("kl", "right", "nll")


@dataclass(frozen=True)
class Scores:
    """Of samples, in their order: `[n]` each, as above."""

    kl: Sequence[float]
    right: Sequence[float]
    nll: Sequence[float]

    @staticmethod
    def join(parts: Sequence[Scores]) -> Scores:
        return Scores(*([v for part in parts for v in getattr(part, name)] for name in MEASURES))


@dataclass(frozen=True)
class Band:
    """A mean over samples and its 95 % interval, when videos are drawn with replacement."""

    mean: float
    low: float
    high: float


def videos(keys: Sequence[str]) -> np.ndarray:
    """`[n]` numbers 0..C-1: which samples are about the same video (their keys agree up to the conversation)."""
    return np.unique([key.rpartition("#")[0] or key for key in keys], return_inverse=True)[1]


def band(values: Sequence[float], clusters: np.ndarray) -> Band:
    """ValueError without values."""
    if not len(values):
        raise ValueError("there is no sample to take a mean of")
    x = np.asarray(values, float)
    if (x == x[0]).all():
        return Band(float(x[0]), float(x[0]), float(x[0]))
    return Band(float(x.mean()), *bootstrap_interval(x, clusters, resamples=RESAMPLES))


class Judge:
    """Compares what a decoder makes of a pack with what it made of it unchanged."""

    def __init__(self, decoder: Decoder, pack: Pack, hidden: Tensor) -> None:
        """hidden `[M, D]`: of the unchanged model at the labels, behind the final norm."""
        self.decoder, self.hidden = decoder, hidden
        where = pack.labels != IGNORE
        self.labels = pack.labels[where]  # [M]
        self.sequence = Bounds(pack.lengths, pack.labels.device).seq_idx[where]  # [M]
        self.num_sequences = len(pack.lengths)

    def scores(self, hidden: Tensor) -> Scores:
        """Of every sequence of the pack; a hidden state `[M, D]` in place of the unchanged one."""
        parts = [self._some(*some) for some in zip(*(t.split(AT_A_TIME) for t in (self.hidden, hidden, self.labels)))]
        kl, right, nll = (torch.cat(values).cpu() for values in zip(*parts))
        one, at = torch.ones_like(kl), self.sequence.cpu()
        count, kl, wrong, nll = (
            torch.zeros(self.num_sequences, dtype=torch.float64).index_add(0, at, v) for v in (one, kl, 1 - right, nll)
        )
        return Scores((kl / count).tolist(), (wrong == 0).double().tolist(), nll.tolist())

    def _some(self, before: Tensor, after: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """kl, right and nll of some labels, float64."""
        q = self.decoder.project(after)
        kl = divergence(self.decoder.project(before), q)
        nll = -q.double().log_softmax(-1).gather(1, labels[:, None]).squeeze(1)
        return kl, (q.argmax(-1) == labels).double(), nll

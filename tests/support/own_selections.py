"""Two selections of one's own. In the package each would be a class and an entry in `timeviper/model/selection.py`, and
a name and an entry in `timeviper/config/model.py`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from timeviper.config.model import SelectionFacts
from timeviper.kernels.bounds import Bounds
from timeviper.model.selection import ByCount, ByScore, View


class ByNorm(ByScore):
    """The vision tokens with the largest residuals stay."""

    def scores(self, view: View) -> Tensor:
        return torch.cat([x.float().norm(dim=1) for x, _ in view.residuals()])  # [L]


class Latest(ByCount):
    """The last vision tokens of each sequence stay."""

    def mask(self, current: Sequence[int], kept: Sequence[int], device: torch.device) -> Tensor:
        vision = Bounds(current, device)
        lost = torch.tensor([n - k for n, k in zip(current, kept)]).to(device, non_blocking=True)  # [S]
        return vision.position >= lost[vision.seq_idx]


# What checks must know: neither needs an attention block, and no question takes part.
FACTS = {"norm": SelectionFacts(), "latest": SelectionFacts()}
SELECTIONS = {"norm": ByNorm(), "latest": Latest()}

"""The metrics of test sets under torchmetrics' interface, so that a validation loop on any number of ranks has them.

Texts are states as bytes and lengths, which ranks can exchange; the result is that of all of them, because CIDEr counts
documents over the whole corpus. What is not additive is computed at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from timeviper.benchmarking.cider import cider, words
from timeviper.benchmarking.windows import THRESHOLDS, Window, best_iou, meets


class CIDErScore(Metric):
    """CIDEr of captions, 0 to 10: `update(preds, target)`, target a list of references for each caption."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    content: list[Tensor]
    sizes: list[Tensor]
    references: list[Tensor]

    def __init__(self, tokenize: bool = True, **kwargs: Any) -> None:
        """tokenize: through `cider.words`; else tokens are what spaces separate."""
        super().__init__(**kwargs)
        self.tokenize = tokenize
        self.add_state("content", default=[], dist_reduce_fx="cat")
        self.add_state("sizes", default=[], dist_reduce_fx="cat")
        self.add_state("references", default=[], dist_reduce_fx="cat")

    def update(self, preds: Sequence[str], target: Sequence[Sequence[str]]) -> None:
        """Raises ValueError where there are not as many lists of references as captions, or one is empty."""
        if len(preds) != len(target) or any(isinstance(refs, str) or not refs for refs in target):
            raise ValueError("target must be a list of references for each of preds")
        for said, refs in zip(preds, target):
            texts = [text.encode() for text in (said, *refs)]
            self.content.append(torch.tensor(list(b"".join(texts)), dtype=torch.uint8, device=self.device))
            self.sizes.append(torch.tensor([len(text) for text in texts], device=self.device))
            self.references.append(torch.tensor([len(refs)], device=self.device))

    def compute(self) -> Tensor:
        if not len(self.references):
            return torch.tensor(0.0)
        content = bytes(dim_zero_cat(self.content).tolist())
        texts, start = [], 0
        for size in dim_zero_cat(self.sizes).tolist():
            texts.append(content[start : start + size].decode())
            start += size
        if self.tokenize:
            texts = [" ".join(words(text)) for text in texts]
        said, refs, at = [], [], 0
        for count in dim_zero_cat(self.references).tolist():
            said.append(texts[at])
            refs.append(texts[at + 1 : at + 1 + count])
            at += 1 + count
        return torch.tensor(cider(said, refs), dtype=torch.float64)


class TemporalGrounding(Metric):
    """mIoU and R1 at thresholds, 0 to 1 each: `update(preds, target)`, a window or None for each question, and its true
    windows. strictly: an IoU must be above a threshold; else it may just reach it."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor
    hits: Tensor

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS, strictly: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.thresholds, self.strictly = tuple(thresholds), strictly
        self.add_state("total", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("hits", default=torch.zeros(len(self.thresholds), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Sequence[Window | None], target: Sequence[Sequence[Window]]) -> None:
        if len(preds) != len(target):
            raise ValueError(f"{len(preds)} windows for {len(target)} questions")
        for said, true in zip(preds, target):
            value = best_iou(said, true)
            self.total += value
            self.count += 1
            self.hits += torch.tensor([meets(value, t, self.strictly) for t in self.thresholds], device=self.device)

    def compute(self) -> dict[str, Tensor]:
        n = self.count.clamp(min=1)
        rates = self.hits.double() / n
        return {"mIoU": self.total / n} | {f"R1@{t:g}": rates[i] for i, t in enumerate(self.thresholds)}

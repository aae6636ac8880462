"""The parts of a model that a stage may train, told apart by parameter name."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from torch import nn

from timeviper.config import PARTS

_PREFIXES = (
    ("towers.", "tower"),
    ("projectors.", "projector"),
    ("decoder.transv.", "transv"),
    ("decoder.", "decoder"),
)


def part_of(name: str) -> str:
    """The part that a parameter of `TimeViper` or `TagModel` belongs to: one of `config.PARTS`."""
    for prefix, part in _PREFIXES:
        if name.startswith(prefix):
            return part
    raise ValueError(f"parameter {name!r} belongs to no part; names start with one of {[p for p, _ in _PREFIXES]}")


class Parts(nn.Module):
    """A model whose parts can be frozen: without gradients, and in eval mode whatever `train()` says."""

    def freeze(self, trainable: Collection[str]) -> None:
        """Train the named parts and freeze the others."""
        if unknown := sorted(set(trainable) - set(PARTS)):
            raise ValueError(
                f"train.trainable: {', '.join(unknown)} is no part of the model; allowed: {', '.join(PARTS)}"
            )
        present = set()
        for name, p in self.named_parameters():
            present.add(part_of(name))
            p.requires_grad_(part_of(name) in trainable)
        for part in sorted(set(trainable) - present):
            warnings.warn(f"train.trainable names {part}, but this model has none: it has no effect", stacklevel=2)
        self.train(self.training)

    def train(self, mode: bool = True) -> Parts:
        super().train(mode)
        for module in self.modules():
            params = list(module.parameters())
            if params and not any(p.requires_grad for p in params):
                for inner in module.modules():  # not eval(): this module may be the whole model
                    inner.training = False
        return self

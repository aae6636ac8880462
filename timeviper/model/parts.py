"""The parts of a model that a stage may train, told apart by parameter name."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from torch import nn

from timeviper.config import PARTS

_PREFIXES = (
    ("towers.", "tower"),
    ("projectors.", "projector"),
    ("times.", "projector"),
    ("decoder.transv.", "transv"),
    ("decoder.", "decoder"),
)


def part_of(name: str) -> str:
    """The part that a parameter of `TimeViper` or `TagModel` belongs to: one of `config.PARTS`."""
    for prefix, part in _PREFIXES:
        if name.startswith(prefix):
            return part
    raise ValueError(f"parameter {name!r} belongs to no part; names start with one of {[p for p, _ in _PREFIXES]}")


def is_adapter(name: str) -> bool:
    """Whether a parameter is of a low-rank adapter (see `lora.py`)."""
    return name.rpartition(".")[2] in ("lora_A", "lora_B")


class Parts(nn.Module):
    """A model whose parts can be frozen: without gradients, and in eval mode whatever `train()` says."""

    def freeze(self, trainable: Collection[str]) -> None:
        """Train the named parts and freeze the others; in a part with adapters, these alone learn."""
        if unknown := sorted(set(trainable) - set(PARTS)):
            raise ValueError(
                f"train.trainable: {', '.join(unknown)} is no part of the model; allowed: {', '.join(PARTS)}"
            )
        names = [name for name, _ in self.named_parameters()]
        present, adapted = set(map(part_of, names)), {part_of(name) for name in names if is_adapter(name)}
        for name, p in self.named_parameters():
            part = part_of(name)
            p.requires_grad_(part in trainable and (part not in adapted or is_adapter(name)))
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

    def describe_trainable(self) -> str:
        """How many parameters learn, of how many, part by part."""
        count: dict[str, list[int]] = {}
        for name, p in self.named_parameters():
            kind = f"{part_of(name)} (LoRA)" if is_adapter(name) else part_of(name)
            sums = count.setdefault(kind, [0, 0])
            if p.requires_grad:
                sums[0] += p.numel()
            sums[1] += p.numel()
        learns, total = (sum(c) for c in zip(*count.values()))
        listed = ", ".join(f"{kind} {n:,}" for kind, (n, _) in count.items() if n)
        return f"trains {learns:,} of {total:,} parameters ({learns / total:.2%}): {listed}"

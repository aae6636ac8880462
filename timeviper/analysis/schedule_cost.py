"""What each block costs at each share of vision tokens: FLOPs, tokens seen, bytes of keys and values.

All are of a prompt and its answer in one forward pass of the decoder's blocks, as `plan` counts them
(`model.flops.model_flops`); towers, logits and what TransV itself takes are not in them, nor is latency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from timeviper.analysis.schedule import Floats
from timeviper.config import LoraConfig, ModelConfig, TransVConfig, TransVStage
from timeviper.config.shape import PackShape, SegmentShape, segment_shapes
from timeviper.model.flops import model_flops

BUDGETS = {
    "flops": "FLOPs of the decoder's blocks",
    "tokens": "vision tokens that a block sees, mean over the blocks",
    "kv": "bytes of keys and values",
}
MIXING = ("mamba", "scan", "attention", "mlp")  # parts of a block


def block_costs(model: ModelConfig, shapes: Sequence[PackShape], ratios: Sequence[float]) -> dict[str, Floats]:
    """`[R + 1, D]` by budget: of each block at keep 1 and at every ratio, as shares of all blocks at keep 1.

    shapes: of the samples, each counts as often as it stands there. ValueError if none has a vision token.
    """
    layout, keeps = model.decoder.layout, (1.0, *ratios)
    short = [[_stream(model, shape, keep) for shape in shapes] for keep in keeps]
    vision = [float(sum(sum(stream.vision) for stream in row)) for row in short]
    if not vision[0]:
        raise ValueError("there is no vision token in these samples, so no stage saves anything")
    length = [float(sum(stream.num_tokens for stream in row)) for row in short]
    flops = {letter: [_flops(model, letter, shapes, keep) for keep in keeps] for letter in dict.fromkeys(layout)}
    found = {
        "flops": np.array([[flops[letter][i] for letter in layout] for i in range(len(keeps))]),
        "tokens": np.array([[vision[i]] * len(layout) for i in range(len(keeps))]),
        "kv": np.array([[length[i] * (letter == "*") for letter in layout] for i in range(len(keeps))]),
    }
    return {name: cost / cost[0].sum() for name, cost in found.items()}


def _only(model: ModelConfig, keep: float, layout: str) -> ModelConfig:
    """The model with other blocks, all behind one drop; adapters are merged in what is exported."""
    stages = {"drop": TransVStage(0, keep, "uniform", transfer=False)}
    decoder = replace(model.decoder, layout=layout)
    return replace(model, decoder=decoder, transv=TransVConfig(stages=stages), lora=LoraConfig())


def _stream(model: ModelConfig, shape: PackShape, keep: float) -> SegmentShape:
    return segment_shapes(_only(model, keep, model.decoder.layout), shape)[-1]


def _flops(model: ModelConfig, letter: str, shapes: Sequence[PackShape], keep: float) -> float:
    """Of one block of a kind, forward, all samples."""
    one = _only(model, keep, letter)
    parts = (model_flops(one, shape, ()) for shape in shapes)
    return float(sum(found[part].forward for found in parts for part in MIXING))

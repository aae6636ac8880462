"""The settings of the callbacks that a recipe may switch off, and of a person's own. Part of `settings.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from timeviper.config.ranges import above, at_least


@dataclass
class ThroughputConfig:
    """Speed and MFU, at every log line. Costs counting on the host."""

    peak_tflops: float | None = above(0, None, "above 0, or null for the GPU's data sheet")
    """Peak of one GPU in TFLOP/s, by which MFU divides; null: its data sheet's for bfloat16, where the GPU is known."""


@dataclass
class MemoryConfig:
    """Memory by part, beside what the planner expects. Costs a walk over the parameters."""

    every: int = at_least(1, 100)
    """Steps between two measurements; the first step is always measured."""


@dataclass
class TransferConfig:
    """What TransV does, on a fixed probe of held-out samples. Costs a forward pass for each stage and one more,
    and two where a stage ranks; warns once where its choice is worth less than random tokens."""

    every: int = at_least(1, 250)
    """Steps between two measurements."""
    samples: int = at_least(1, 8)
    """Held-out samples of the probe, shared out among the ranks."""


@dataclass
class SamplesConfig:
    """A few held-out questions with frames, right answer and the model's, after each validation."""

    samples: int = at_least(1, 4)
    """Held-out samples, always the same, shared out among the ranks."""
    frames: int = at_least(1, 8)
    """Frames of each that are shown, evenly spaced."""
    max_new_tokens: int = at_least(1, 32)
    """Longest answer; each token costs all ranks a forward pass of one token."""


@dataclass
class OwnCallback:
    """A Lightning callback of your own."""

    callback: str = ""
    """A subclass of lightning.pytorch.Callback as module:Class, found from the folder where the run starts."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of that class."""


@dataclass
class OwnLogger:
    """A Lightning logger beside the files in <run>/logs."""

    logger: str = ""
    """A subclass of lightning.pytorch.loggers.Logger as module:Class, such as lightning.pytorch.loggers:WandbLogger."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of that class, such as {project: timeviper, name: stage2, id: stage2, resume: allow}."""


@dataclass
class CallbacksConfig:
    """What is measured and shown while a stage trains; `callbacks.<name>: null` switches one off."""

    throughput: ThroughputConfig | None = field(default_factory=ThroughputConfig)
    """Tokens and frames a second, waiting for data, model FLOPs and MFU."""
    memory: MemoryConfig | None = field(default_factory=MemoryConfig)
    """Parameters, gradients, optimizer state by part of the model, and the peak."""
    transfer: TransferConfig | None = field(default_factory=TransferConfig)
    """Gates, moved attention, entropy and worth of the choice, and KL of TransV; nothing in stages without TransV."""
    samples: SamplesConfig | None = field(default_factory=SamplesConfig)
    """Table of answers with frames as pictures, in TensorBoard and in <run>/logs/samples."""
    own: dict[str, OwnCallback] = field(default_factory=dict)
    """Your callbacks, by names that you choose."""

"""Every setting of a recipe, as typed dataclasses: the only place where a default is written.

The string under a field is its documentation, which `timeviper explain` prints; one string under several
fields documents them all.
The model's own are in `model.py`, those of callbacks in `callbacks.py`. Defaults describe the published
9B recipe where the paper states one; named sizes are in `presets.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

from timeviper.config.callbacks import CallbacksConfig, OwnLogger
from timeviper.config.model import BLOCKS, ModelConfig
from timeviper.config.ranges import above, at_least, ranged, share

# The parts of the model that a stage may train, and that may have a learning rate of their own.
PARTS = ("tower", "projector", "decoder", "transv")
# What activation checkpointing tells apart.
BLOCK_TYPES = (*(block.name for block in BLOCKS.values()), "transv", "tower", "projector")


@dataclass
class ChatConfig:
    """How a conversation becomes tokens."""

    system: str = ""
    """System message before every conversation; empty: none (a template may still emit an empty section)."""
    time: Literal["none", "sentence", "frames", "tokens"] = "sentence"
    """How a model knows of time: not at all; by a sentence with duration and frame count; by a text before each frame
    group, which TransV can never drop; or by that sentence and the frames' own tokens, to which a learned map of their
    seconds is added."""
    frames_per_time: int = at_least(1, 1)
    """With `time: frames`: frames in a group, that is, how often a time is written."""


@dataclass
class FramesConfig:
    """Which frames of a video are read."""

    fps: float = above(0, 1.0)
    """Frames a second of video, until `max_frames` binds."""
    min_frames: int = at_least(1, 1)
    """At least this many frames (of a video that has them), however short the video is."""
    max_frames: int = 256
    """At most this many, evenly spaced over the whole video."""


@dataclass
class SourceConfig:
    """A set of shards that samples are drawn from."""

    shards: str = ""
    """A folder of .tar shards with their .idx.json, or a glob of them; also s3://, https:// and the like."""
    dataset: str = ""
    """In place of shards: a Python class with the methods __len__, record and open, as module:Class."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of that class."""
    weight: float = at_least(0, 1.0)
    """Share of this source in the mixture (see data.mixture), relative to the other weights."""
    epochs: float | None = above(0, None, "above 0, or null for no bound")
    """How often its samples are gone through at most; null: as often as the steps need."""
    types: str = ""
    """Keep only these question types (comma-separated); empty: all."""


@dataclass
class DataConfig:
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """What is trained on, by name."""
    val: dict[str, SourceConfig] = field(default_factory=dict)
    """Held-out data for validation and evaluation, by name."""
    mixture: Literal["samples", "tokens"] = "samples"
    """What the weights of the sources are shares of: samples, or tokens at the decoder's input."""
    frames: FramesConfig = field(default_factory=FramesConfig)
    turns: Literal["whole", "split"] = "whole"
    """whole: a conversation is one sequence; split: each of its turns is one, with all that comes before it, and only
    its own answer counts. Frames are read and encoded once. What attention-guided TransV asks for: it supervises the
    last answer of a sequence."""
    tokens_per_pack: int = at_least(1, 8192)
    """Decoder tokens of a pack (a micro-batch of a rank), mean over the blocks: after ToMe and TransV."""
    packs_per_step: int = at_least(1, 1)
    """Packs of one optimizer step over all ranks; every rank gets the same number."""
    shuffle_window: int = at_least(1, 4096)
    """Samples in the window shuffle that follows the permutation of shards."""
    workers: int = at_least(0, 1)
    """Loader processes a rank; 0 reads in the training process."""
    prefetch: int = at_least(1, 2)
    """Steps read ahead for each loader process, as far as prefetch_gb allows."""
    prefetch_gb: float = at_least(0, 2.0, "0 (one part of a pack) or more")
    """GB that all loader processes of a rank hold of the steps to come, read and pinned, beside the pack that is being
    put together. Packs are read in parts that suit it; a sample with more than this is read alone."""
    cache: str = ""
    """Folder that keeps what was read from remote shards, and indexes of many samples, for all processes of a node;
    empty: timeviper-cache in the temporary folder."""
    cache_gb: float = at_least(0, 10.0, "0 (no cache) or more")
    """Largest size of what is kept of shards, in GB; what was not used for longest goes first. Indexes come on top."""
    patience: float = at_least(0, 600.0, "0 (ask once) or more seconds")
    """Seconds for which the store of remote shards may be away before the run saves its state and ends. Meanwhile it
    waits and goes on where it was: no sample is lost or counted as unreadable."""
    on_change: Literal["refuse", "finish_epoch", "restart_order"] = "refuse"
    """What a run does that goes on after shards have been added, replaced or removed. refuse: it ends with the list of
    them; finish_epoch: the epoch under way ends with the shards of before, and then come all of today's; restart_order:
    an epoch of today's shards begins at once, for the sources that have changed, and their `epochs` count anew."""
    max_skipped: float = ranged(lambda x: 0 <= x <= 1, 0.005, "a share of the samples, from 0 to 1")
    """Share of samples that may be unreadable before the run stops with the list of them."""


@dataclass
class PhaseConfig:
    """A change of what is read, kept and trained, from a step on: the curriculum."""

    start: int = 0
    """First step of the phase."""
    max_frames: int | None = None
    """Replaces data.frames.max_frames."""
    fps: float | None = above(0, None)
    """Replaces data.frames.fps."""
    weights: dict[str, float] = field(default_factory=dict)
    """Replaces weights of named sources; 0 pauses a source."""
    keep: dict[str, float] = field(default_factory=dict)
    """Replaces `keep` of named TransV stages while training; validation and the export use model.transv."""
    ramp: int = 0
    """Steps after `start` in which what TransV keeps moves evenly to this phase's from the one before; 0: at once."""
    trainable: list[str] | None = None
    """Parts out of train.trainable that learn in this phase; null: all of them. The others stand still, but their
    gradients are still computed."""


@dataclass
class GuardConfig:
    """What happens when a step's loss or gradient norm is not a number, or explodes. The step is never applied."""

    policy: Literal["stop", "skip", "rewind"] = "stop"
    """stop: end the run; skip: go on without the step; rewind: back to the last checkpoint, then without its data."""
    spike: float = ranged(lambda x: x == 0 or 1 < x < inf, 0.0, "0 (off) or above 1: a multiple of the running median")
    """A loss or gradient norm above this many times its running median counts, too; 0: only what is not finite."""
    window: int = at_least(1, 64)
    """Steps of the running median; nothing counts as a spike before a quarter of them."""
    limit: int = at_least(1, 8)
    """Incidents of the run folder after which skip and rewind stop the run."""
    leave_out: int = at_least(1, 1)
    """With `rewind`: steps whose data are left out, the last of them the offending one."""
    keep_weights: int = at_least(0, 2, "0 (none) or more")
    """Incidents, the first ones, whose bundle holds the weights that `timeviper replay` needs."""


@dataclass
class WatchdogConfig:
    """Says where each rank is when a step, or the wait for its data, takes too long."""

    seconds: float | None = at_least(0, None, "0 (off) or more, or null for the planned step")
    """Longest step or wait for data; validation and checkpoints do not count, a start may take 5 times as long.
    0: off; null: 600, or 5 times the step that `timeviper plan` expects of this GPU where that is more, or 1.5 times
    data.patience of remote shards; from the second step on also 5 times the longest step so far."""
    abort: bool = False
    """End the process afterwards, and with it the job, instead of waiting on."""


@dataclass
class TrainConfig:
    objective: Literal["answer", "tags"] = "answer"
    """answer: next-token loss on the answers; tags: tower, projector and embeddings predict captions' words."""
    steps: int = at_least(1, 1000)
    """Optimizer steps of the stage."""
    init_from: str = ""
    """Run folder of the previous stage, or its export; empty: start from `weights` of the parts, or at random."""
    trainable: list[str] = field(default_factory=lambda: ["projector"])
    """Parts that learn: tower, projector, decoder, transv. The others stay frozen and in eval mode."""
    distill: float = at_least(0, 0.0)
    """Weight of KL(answers without TransV || answers with it), of the same weights, beside the loss: what compressing
    loses teaches it. Costs a forward pass more; 0: none, as published."""
    phases: dict[str, PhaseConfig] = field(default_factory=dict)
    """Named phases with rising start: what changes while the stage runs."""
    validate_every: int = at_least(0, 0, "0 (at the end only) or more")
    """Steps between validations on held-out shards; 0: only at the end. The last weights are always validated."""
    validate_samples: int = at_least(1, 256)
    """Held-out samples of one validation."""
    checkpoint_every: int = at_least(1, 500)
    """Steps between checkpoints; the last step and an interruption always write one."""
    keep_checkpoints: int = at_least(1, 2)
    """Newest checkpoints that stay on disk."""
    checkpoint_async: bool = True
    """Write checkpoints while training goes on, from one copy of the weights and optimizer in host memory."""
    stop_within: float = above(0, 30.0, "above 0, in seconds")
    """Seconds between SIGTERM (or SIGUSR1, Ctrl-C) and the end of the process; for a message when it is too short."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)


# What a learning rate must be, for the message.
RATE = "above 0; a part is frozen by leaving it out of train.trainable"


@dataclass
class OptimConfig:
    name: Literal["adamw", "muon"] = "adamw"
    """muon: matrices inside of blocks and transfers by Muon, scaled so that AdamW's rates serve; all else by AdamW."""
    lr: float = above(0, 1e-5, RATE)
    """Peak learning rate."""
    lrs: dict[str, float | None] = field(default_factory=dict, metadata=above(0, None, RATE).metadata)
    """Learning rates of single parts (tower, projector, decoder, transv) where they differ; null: `lr`."""
    weight_decay: float = at_least(0, 0.01)
    """Not applied to norms, biases, embeddings' gates, A_log, D, dt_bias, transfer gates and LoRA adapters."""
    beta1: float = share(0.9)
    beta2: float = share(0.999)
    """Decay of AdamW's running means of the gradient and of its square."""
    warmup: float = share(0.03, "a share of the steps, from 0 to below 1")
    """Share of the steps with a rising learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    final_lr: float = ranged(lambda x: 0 <= x <= 1, 0.0, "a share of the peak, from 0 to 1")
    """Learning rate at the last step, as a share of the peak."""
    clip: float = at_least(0, 1.0, "0 (no clipping) or more")
    """Gradient norm over all trained parameters is cut to this; 0: not cut."""


@dataclass
class ParallelConfig:
    param_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of computation; master weights, gradient reduction, norms, gates and the scan's parameters stay float32."""
    frozen_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """Dtype in which frozen matrices are kept; bfloat16 halves their memory and rounds them, also in the export. int8
    (needs torchao) is for the maps of decoder blocks and transfers, with a scale a row; others as param_dtype."""
    activation_checkpointing: str = "none"
    """What is computed again in the backward pass instead of kept: none, all, or block types (comma-separated) out of
    mamba, attention, mlp, transv, tower, projector; true means all, false none."""
    tokens_per_piece: int = at_least(0, 8192, "0 (whole) or more")
    """A checkpointed block is computed again and differentiated this many tokens of a pack at a time, so that what it
    needs does not grow with their number; an encoder as many patches. 0: all at once."""
    offload_activations: bool = False
    """Keep what blocks save for the backward pass in host memory; with checkpointing only the blocks' inputs. Copies
    overlap with computation. A run that needs more than the host has free is refused before it starts."""
    offload_params: bool = False
    """Keep parameters, gradients and optimizer state in host memory, where AdamW then runs."""
    compile: bool = False
    """torch.compile every decoder block."""
    reduce_every_pack: bool = False
    """Reduce gradients after every pack of a step instead of once: as much more communication, but between packs a
    rank holds its shard of the gradients instead of all of them."""
    replicas: int = at_least(1, 1)
    """Groups of ranks that each hold a full copy (hybrid sharding); 1: sharded over all ranks."""

    @property
    def checkpointed(self) -> frozenset[str]:
        """The block types that `activation_checkpointing` names, known or not."""
        named = frozenset(word.strip() for word in self.activation_checkpointing.lower().split(","))
        return frozenset(BLOCK_TYPES) if named & {"all", "true"} else named - {"none", "false", ""}


@dataclass
class EvalConfig:
    samples: int = at_least(0, 0, "0 (all) or more")
    """Held-out samples to answer; 0: all."""
    max_new_tokens: int = at_least(1, 48)
    """Longest answer."""
    batch: int = at_least(1, 16)
    """Questions whose answers are written together, at most."""
    tokens_per_piece: int = at_least(0, 4096, "0 (prompts are always taken whole) or more")
    """Tokens that go through the decoder at a time while a prompt is read; of longer prompts no more frames than this
    takes are in memory. 0: whole prompts."""
    quantise: Literal["none", "int8", "fp8"] = "none"
    """Keep the maps of decoder blocks and transfers in eight bits (needs torchao) when the model answers: half the
    memory of bfloat16, with small errors. fp8 is for GPUs that multiply in it."""


@dataclass
class LogConfig:
    every: int = at_least(1, 10)
    """Steps between two log lines."""
    tensorboard: bool = True
    csv: bool = True
    """Which logs are written to <run>/logs."""
    loggers: dict[str, OwnLogger] = field(default_factory=dict)
    """Other Lightning loggers (Weights & Biases, MLflow, your own), by names that you choose."""


@dataclass
class Recipe:
    """One stage of training, whole."""

    name: str = ""
    """Stage name; the run folder is runs/<size>/<name>."""
    size: str = ""
    """Family of runs that this one belongs to (tiny, nano9b, your own): first part of the run folder."""
    about: str = ""
    """What the stage trains and what must exist before it."""
    out: str = ""
    """Run folder; empty: runs/<size>/<name>."""
    seed: int = 0
    """Seed of weights and data order."""
    model: ModelConfig = field(default_factory=ModelConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)

    @property
    def run_dir(self) -> str:
        return self.out or f"runs/{self.size}/{self.name}"

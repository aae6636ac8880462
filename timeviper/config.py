"""Every setting of a recipe, as typed dataclasses: the only place where a default is written.

The string under a field is its documentation, which `timeviper explain` prints; one string under several
fields documents them all.
Defaults describe the published 9B recipe where the paper states one; named sizes are in `presets.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

# The parts of the model that a stage may train, and that may have a learning rate of their own.
PARTS = ("tower", "projector", "decoder", "transv")
# What activation checkpointing tells apart.
BLOCK_TYPES = ("mamba", "attention", "mlp", "transv", "tower")
# What low-rank adapters can stand beside; the word before the dot names all of its kind.
LORA_TARGETS = (
    *(f"attention.{name}" for name in "qkvo"),
    *("mamba.in", "mamba.out", "mlp.up", "mlp.gate", "mlp.down", "projector.in", "projector.out"),
    *(f"transv.{name}" for name in "qkvo"),
)


@dataclass
class TowerConfig:
    """One vision encoder: uint8 frames in, `tokens` features a frame out."""

    family: Literal["vit", "siglip", "dinov2"] = "siglip"
    """vit: a small ViT with a convolutional stem; siglip (also fixed-size SigLIP2), dinov2: pretrained."""
    weights: str = ""
    """Folder of pretrained weights (Hugging Face layout); empty: random, or from the previous stage."""
    image_size: int = 384
    """Frames are resized to this square, in pixels."""
    patch_size: int = 14
    """Pixels a patch side; the stem of `vit` reaches it by strided convolutions, so a power of two there."""
    width: int = 1152
    layers: int = 27
    heads: int = 16
    mlp_width: int = 4304
    """Size of the encoder: features a patch, blocks, attention heads, hidden units of the MLP."""
    registers: int = 0
    """Register tokens of the encoder (DINOv2 with registers: 4); never passed on."""
    feature_layer: int = -2
    """Which block's output is the feature: -1 the last, -2 the one before (the published choice)."""
    tokens: int = 16
    """Tokens a frame after merging (ToMe); equal to the patch count: no merging."""


@dataclass
class DecoderConfig:
    """The language model: a stack of pre-norm residual blocks laid out by a string."""

    family: Literal["nemotron_h", "llama", "qwen2"] = "nemotron_h"
    """nemotron_h: no positions, ungated relu2 MLP; llama, qwen2: RoPE and SwiGLU, the transformer control."""
    layout: str = ""
    """One letter a block: M Mamba-2, * attention, - MLP."""
    vocab_size: int = 131072
    width: int = 4480
    mlp_width: int = 15680
    """Rows of the embedding, width of the residual stream, hidden units of an MLP block."""
    heads: int = 40
    kv_heads: int = 8
    head_dim: int = 128
    """Attention blocks: query heads, key and value heads (each serves heads / kv_heads), size of a head."""
    ssm_heads: int = 128
    ssm_head_dim: int = 80
    ssm_state: int = 128
    ssm_groups: int = 8
    conv_kernel: int = 4
    """Mamba-2 blocks: heads, size of a head, its state, groups that share B and C, convolution width."""
    chunk_size: int = 128
    """Tokens a chunk in the chunked scan; changes speed and memory, not results."""
    norm_eps: float = 1e-5
    """Added to the mean square in every RMSNorm."""
    rope_theta: float = 10000.0
    """Base of the rotary embedding; only llama and qwen2 have one."""
    tie_embeddings: bool = False
    """Whether the output layer shares the embedding's weights."""
    max_tokens: int = 131072
    """Longest sequence that the weights were made for; longer prompts are refused."""
    weights: str = ""
    """Folder with imported weights (see `timeviper import`); empty: random, or from the previous stage."""


@dataclass
class TransVStage:
    """One transfer of vision tokens into the instruction tokens, before a block."""

    layer: int = 0
    """Runs on the residual stream before this block, counted from 0."""
    keep: float = 1.0
    """Fraction of the ORIGINAL vision tokens of a sequence that is left afterwards, in (0, 1]."""
    select: Literal["uniform", "attention"] = "uniform"
    """Which stay: evenly spaced, or by the last prompt token's attention (before attention blocks only)."""
    transfer: bool = True
    """false: dropped tokens are lost (the pure-drop baseline)."""


@dataclass
class TransVConfig:
    """Token transfer inside the decoder (paper 3.3)."""

    stages: dict[str, TransVStage | None] = field(default_factory=dict)
    """Named stages in order of rising layer; set one to null to remove it. None at all: TransV is off."""
    prenorm: bool = True
    """Normalise queries and keys before the cross-attention; false is the paper's form."""
    keys: Literal["dropped", "all"] = "dropped"
    """Keys and values: the dropped vision tokens, or all of them (a variant for ablations)."""
    queries: Literal["instruction", "instruction+answer"] = "instruction"
    """Who receives: instruction tokens only, or answer tokens too (as in the authors' training code)."""


@dataclass
class LoraConfig:
    """Low-rank adapters beside frozen linear maps; the export holds them merged, and alone in export/adapter/."""

    rank: int = 0
    """Rank of the adapters; 0: none."""
    alpha: float = 16.0
    """What an adapter adds is scaled by alpha / rank."""
    dropout: float = 0.0
    """Share of an adapter's inputs that are set to 0 while it learns."""
    targets: list[str] = field(default_factory=lambda: ["attention", "mamba", "mlp"])
    """What gets an adapter: attention, mamba, mlp, projector, transv, or single maps such as attention.q or mamba.in.
    In a part with adapters these alone learn, at the rate of the part (optim.lrs)."""
    weights: str = ""
    """Adapter file to start from (adapter.safetensors of an export); empty: adapters that add nothing yet."""


@dataclass
class KernelConfig:
    """Which implementation runs each operation: auto takes the fastest that runs on the device."""

    ssd: Literal["auto", "reference", "torch", "vendor"] = "auto"
    conv1d: Literal["auto", "reference", "torch", "vendor"] = "auto"
    attention: Literal["auto", "reference", "torch", "vendor"] = "auto"
    norm: Literal["auto", "reference", "torch", "vendor"] = "auto"
    cross_entropy: Literal["auto", "reference", "torch", "vendor"] = "auto"
    """reference: readable and slow; torch: fast on every device; vendor: the optional GPU packages."""


@dataclass
class ModelConfig:
    preset: str = "nano9b"
    """Named size that the fields below start from (see `presets.py`)."""
    tokenizer: str = ""
    """Folder or tokenizer.json; empty: the small tokenizer that ships with the package."""
    towers: dict[str, TowerConfig | None] = field(default_factory=dict)
    """Vision encoders by name; the tokens of several are laid side by side in each frame."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    transv: TransVConfig = field(default_factory=TransVConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    kernel: KernelConfig = field(default_factory=KernelConfig)


@dataclass
class ChatConfig:
    """How a conversation becomes tokens."""

    system: str = ""
    """System message before every conversation; empty: none (a template may still emit an empty section)."""
    time: Literal["none", "sentence", "frames"] = "sentence"
    """What the prompt says of time: nothing; duration and frame count; or a time before each frame group."""
    frames_per_time: int = 1
    """With `time: frames`: frames in a group, that is, how often a time is written."""


@dataclass
class FramesConfig:
    """Which frames of a video are read."""

    fps: float = 1.0
    """Frames a second of video, until `max_frames` binds."""
    min_frames: int = 1
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
    weight: float = 1.0
    """Share of this source in the mixture (see data.mixture), relative to the other weights."""
    epochs: float | None = None
    """How often its samples are gone through at most; null: as often as the steps need."""
    types: str = ""
    """Keep only these question types (comma-separated); empty: all."""


@dataclass
class DataConfig:
    sources: dict[str, SourceConfig | None] = field(default_factory=dict)
    """What is trained on, by name."""
    val: dict[str, SourceConfig | None] = field(default_factory=dict)
    """Held-out data for validation and evaluation, by name."""
    mixture: Literal["samples", "tokens"] = "samples"
    """What the weights of the sources are shares of: samples, or tokens at the decoder's input."""
    frames: FramesConfig = field(default_factory=FramesConfig)
    tokens_per_pack: int = 8192
    """Decoder tokens of a pack (a micro-batch of a rank), mean over the blocks: after ToMe and TransV."""
    packs_per_step: int = 1
    """Packs of one optimizer step over all ranks; every rank gets the same number."""
    shuffle_window: int = 4096
    """Samples in the window shuffle that follows the permutation of shards."""
    workers: int = 1
    """Loader processes a rank; 0 reads in the training process."""
    prefetch: int = 2
    """Steps that each loader process reads ahead, as far as prefetch_gb allows."""
    prefetch_gb: float = 2.0
    """GB that all loader processes of a rank may hold ready; at least one step each is read ahead."""
    cache: str = ""
    """Folder that keeps what was read from remote shards; empty: timeviper-cache in the temporary folder."""
    cache_gb: float = 10.0
    """Largest size of that folder, in GB; what was not used for longest goes first."""
    max_skipped: float = 0.005
    """Share of samples that may be unreadable before the run stops with the list of them."""


@dataclass
class PhaseConfig:
    """A change of the data from a step on: the curriculum."""

    start: int = 0
    """First step of the phase."""
    max_frames: int | None = None
    """Replaces data.frames.max_frames."""
    fps: float | None = None
    """Replaces data.frames.fps."""
    weights: dict[str, float] = field(default_factory=dict)
    """Replaces weights of named sources; 0 pauses a source."""


@dataclass
class GuardConfig:
    """What happens when a step's loss or gradient norm is not a number, or explodes. The step is never applied."""

    policy: Literal["stop", "skip", "rewind"] = "stop"
    """stop: end the run; skip: go on without the step; rewind: back to the last checkpoint, then without its data."""
    spike: float = 0.0
    """A loss or gradient norm above this many times its running median counts, too; 0: only what is not finite."""
    window: int = 64
    """Steps of the running median; nothing counts as a spike before a quarter of them."""
    limit: int = 8
    """Incidents of the run folder after which skip and rewind stop the run."""
    leave_out: int = 1
    """With `rewind`: steps whose data are left out, the last of them the offending one."""
    keep_weights: int = 2
    """Incidents, the first ones, whose bundle holds the weights that `timeviper replay` needs."""


@dataclass
class WatchdogConfig:
    """Says where each rank is when a step, or the wait for its data, takes too long."""

    seconds: float = 600.0
    """Longest step or wait for data; validation and checkpoints do not count, a start may take 5 times as long.
    0: off."""
    abort: bool = False
    """End the process afterwards, and with it the job, instead of waiting on."""


@dataclass
class TrainConfig:
    objective: Literal["answer", "tags"] = "answer"
    """answer: next-token loss on the answers; tags: tower, projector and embeddings predict captions' words."""
    steps: int = 1000
    """Optimizer steps of the stage."""
    init_from: str = ""
    """Export folder of the previous stage; empty: start from `weights` of the parts, or at random."""
    trainable: list[str] = field(default_factory=lambda: ["projector"])
    """Parts that learn: tower, projector, decoder, transv. The others stay frozen and in eval mode."""
    phases: dict[str, PhaseConfig | None] = field(default_factory=dict)
    """Named phases with rising start: what changes in the data while the stage runs."""
    validate_every: int = 0
    """Steps between validations on held-out shards; 0: only at the end."""
    validate_samples: int = 256
    """Held-out samples of one validation."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the last step and an interruption always write one."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay on disk."""
    checkpoint_async: bool = True
    """Write checkpoints while training goes on, from one copy of the weights and optimizer in host memory."""
    stop_within: float = 30.0
    """Seconds between SIGTERM (or SIGUSR1, Ctrl-C) and the end of the process; for a message when it is too short."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)


@dataclass
class OptimConfig:
    lr: float = 1e-5
    """Peak learning rate of AdamW."""
    lrs: dict[str, float | None] = field(default_factory=dict)
    """Learning rates of single parts (tower, projector, decoder, transv) where they differ; null: `lr`."""
    weight_decay: float = 0.01
    """Not applied to norms, biases, embeddings' gates, A_log, D, dt_bias, transfer gates and LoRA adapters."""
    beta1: float = 0.9
    beta2: float = 0.999
    """Decay of AdamW's running means of the gradient and of its square."""
    warmup: float = 0.03
    """Share of the steps with a rising learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    final_lr: float = 0.0
    """Learning rate at the last step, as a share of the peak."""
    clip: float = 1.0
    """Gradient norm over all trained parameters is cut to this; 0: not cut."""


@dataclass
class ParallelConfig:
    param_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of computation; master weights, gradient reduction, norms, gates and the scan's parameters stay float32."""
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype in which frozen matrices are kept; bfloat16 halves their memory and rounds them, also in the export."""
    activation_checkpointing: str = "none"
    """What is computed again in the backward pass instead of kept: none, all, or block types (comma-separated) out of
    mamba, attention, mlp, transv, tower; true means all, false none."""
    offload_activations: bool = False
    """Keep what blocks save for the backward pass in host memory; with checkpointing only the blocks' inputs."""
    offload_params: bool = False
    """Keep parameters, gradients and optimizer state in host memory, where AdamW then runs."""
    compile: bool = False
    """torch.compile every decoder block."""
    replicas: int = 1
    """Groups of ranks that each hold a full copy (hybrid sharding); 1: sharded over all ranks."""

    @property
    def checkpointed(self) -> frozenset[str]:
        """The block types that `activation_checkpointing` names, known or not."""
        named = frozenset(word.strip() for word in self.activation_checkpointing.lower().split(","))
        return frozenset(BLOCK_TYPES) if named & {"all", "true"} else named - {"none", "false", ""}


@dataclass
class EvalConfig:
    samples: int = 0
    """Held-out samples to answer; 0: all."""
    max_new_tokens: int = 48
    """Longest answer."""
    batch: int = 32
    """Sequences that are answered together."""


@dataclass
class LogConfig:
    every: int = 10
    """Steps between two log lines."""
    tensorboard: bool = True
    csv: bool = True
    """Which logs are written to <run>/logs."""


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
    callbacks: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    """Optional callbacks by name with their options; null switches one off."""

    @property
    def run_dir(self) -> str:
        return self.out or f"runs/{self.size}/{self.name}"

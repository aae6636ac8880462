"""The settings of the model: towers, decoder, TransV, adapters and kernels. Part of `timeviper.config.settings`.

Defaults describe the published 9B model; named sizes are in `presets.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from timeviper.config.ranges import above, at_least, ranged, share


@dataclass(frozen=True)
class BlockType:
    """What a letter of a decoder's layout stands for."""

    name: str
    """As settings and reports call it."""
    title: str
    article: str
    """For sentences."""


BLOCKS = {
    "M": BlockType("mamba", "Mamba-2", "a"),
    "*": BlockType("attention", "attention", "an"),
    "-": BlockType("mlp", "MLP", "an"),
}
LEGEND = ", ".join(f"{letter} {block.title}" for letter, block in BLOCKS.items())

# What low-rank adapters can stand beside; the word before the dot names all of its kind.
LORA_TARGETS = (
    *(f"attention.{name}" for name in "qkvo"),
    *("mamba.in", "mamba.out", "mlp.up", "mlp.gate", "mlp.down", "projector.in", "projector.out"),
    *(f"transv.{name}" for name in "qkvo"),
)

# Settings of a tower or decoder that fix no tensor: stored weights may differ in them from the model that takes them.
TOUCH_NO_TENSOR = ("weights", "chunk_size", "max_tokens")


@dataclass(frozen=True)
class TowerFacts:
    """What checks must know of a tower family; the encoder itself stands in `model/vision/<family>.py`."""

    registers: bool = False
    """Encoders with register tokens exist."""
    crops: bool = False
    """Pixels beyond the last whole patch are left out; else patches cover the image."""
    halves: bool = False
    """The stem halves the image until a patch is left, whose side is therefore a power of two."""


TOWER_FACTS = {
    "vit": TowerFacts(halves=True),
    "siglip": TowerFacts(crops=True),
    "dinov2": TowerFacts(registers=True),
}


@dataclass
class TowerConfig:
    """One vision encoder: uint8 frames in, `tokens` features a frame out."""

    family: Literal["vit", "siglip", "dinov2"] = "siglip"
    """vit: a small ViT with a convolutional stem; siglip (also fixed-size SigLIP2), dinov2: pretrained."""
    weights: str = ""
    """Folder of pretrained weights (Hugging Face layout); empty: random, or from the previous stage."""
    image_size: int = at_least(1, 384)
    """Frames are resized to this square, in pixels."""
    patch_size: int = at_least(1, 14)
    """Pixels a patch side; the stem of `vit` reaches it by strided convolutions, so a power of two there."""
    width: int = at_least(1, 1152)
    layers: int = at_least(1, 27)
    heads: int = at_least(1, 16)
    mlp_width: int = at_least(1, 4304)
    """Size of the encoder: features a patch, blocks, attention heads, hidden units of the MLP."""
    registers: int = 0
    """Register tokens of the encoder (DINOv2 with registers: 4); never passed on."""
    feature_layer: int = -2
    """Which block's output is the feature: -1 the last, -2 the one before (the published choice)."""
    tokens: int = at_least(1, 16)
    """Tokens a frame after merging (ToMe); equal to the patch count: no merging."""

    @property
    def facts(self) -> TowerFacts:
        return TOWER_FACTS[self.family]

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class FamilyFacts:
    """What sets a decoder family apart from the others, in blocks and checks; how its weights are called elsewhere
    stands in `weights/hub/<family>.py`."""

    mlp: str = "swiglu"
    """What an MLP block computes: one of `model.layers.MLPS`."""
    rotary: bool = True
    """Attention turns queries and keys by their position."""
    qkv_bias: bool = False
    """The maps to queries, keys and values have biases."""
    repeats: str = "*-"
    """The layout is this over and over: one layer of other people's checkpoints. Empty: any, a block a layer."""

    @property
    def blocks_per_layer(self) -> int:
        return max(len(self.repeats), 1)

    @property
    def unread(self) -> tuple[str, ...]:
        """How the settings begin that no block of the family reads."""
        mamba = not self.repeats or "M" in self.repeats
        return (*(() if self.rotary else ("rope_",)), *(() if mamba else ("ssm_", "conv_")))


FAMILY_FACTS = {
    "nemotron_h": FamilyFacts(mlp="relu2", rotary=False, repeats=""),
    "llama": FamilyFacts(),
    "qwen2": FamilyFacts(qkv_bias=True),
}


def _of_mamba(default: int) -> Any:
    """A size of Mamba-2 blocks: in a layout without them any number will do."""
    return at_least(1, default, when=lambda decoder: "M" in decoder.layout)


@dataclass
class DecoderConfig:
    """The language model: a stack of pre-norm residual blocks laid out by a string."""

    family: Literal["nemotron_h", "llama", "qwen2"] = "nemotron_h"
    """nemotron_h: no positions, ungated relu2 MLP; llama, qwen2: RoPE and SwiGLU, the transformer control."""
    layout: str = ""
    """One letter a block: M Mamba-2, * attention, - MLP."""
    vocab_size: int = at_least(1, 131072)
    width: int = at_least(1, 4480)
    mlp_width: int = at_least(1, 15680)
    """Rows of the embedding, width of the residual stream, hidden units of an MLP block."""
    heads: int = at_least(1, 40)
    kv_heads: int = at_least(1, 8)
    head_dim: int = at_least(1, 128)
    """Attention blocks: query heads, key and value heads (each serves heads / kv_heads), size of a head."""
    ssm_heads: int = _of_mamba(128)
    ssm_head_dim: int = _of_mamba(80)
    ssm_state: int = _of_mamba(128)
    ssm_groups: int = _of_mamba(8)
    conv_kernel: int = _of_mamba(4)
    """Mamba-2 blocks: heads, size of a head, its state, groups that share B and C, convolution width."""
    chunk_size: int = _of_mamba(128)
    """Tokens a chunk in the chunked scan; changes speed and memory, not results."""
    norm_eps: float = ranged(lambda x: 0 < x < 1, 1e-5, "above 0 and below 1")
    """Added to the mean square in every RMSNorm."""
    rope_theta: float = above(0, 10000.0)
    """Base of the rotary embedding; only llama and qwen2 have one."""
    tie_embeddings: bool = False
    """Whether the output layer shares the embedding's weights."""
    max_tokens: int = at_least(1, 131072)
    """Longest sequence that the weights were made for; longer prompts are refused."""
    weights: str = ""
    """Folder with imported weights (see `timeviper import`); empty: random, or from the previous stage."""

    @property
    def facts(self) -> FamilyFacts:
        return FAMILY_FACTS[self.family]


@dataclass(frozen=True)
class SelectionFacts:
    """What checks must know of a `select` of TransV; what it computes stands in `model/selection.py`."""

    block: str = ""
    """The letter of the block that it ranks with, and so stands before; empty: any."""
    by_question: bool = False
    """The question takes part in the choice. That of a later turn would change what an earlier answer saw."""


SELECTION_FACTS = {
    "uniform": SelectionFacts(),
    "attention": SelectionFacts("*", by_question=True),
    "mamba": SelectionFacts("M", by_question=True),
}


@dataclass
class TransVStage:
    """One transfer of vision tokens into the instruction tokens, before a block."""

    layer: int = 0
    """Runs on the residual stream before this block, counted from 0."""
    keep: float = ranged(
        lambda x: 0 < x <= 1, 1.0, "above 0 and at most 1: the fraction of the original vision tokens that stays"
    )
    """Fraction of the ORIGINAL vision tokens of a sequence that is left afterwards, in (0, 1]."""
    select: Literal["uniform", "attention", "mamba"] = "uniform"
    """Which stay: evenly spaced, or those that the question sees most of, by attention (before attention blocks only)
    or by what a Mamba-2 block would read of them if nothing decayed (before such blocks only)."""
    query: Literal["last", "question"] = "last"
    """Who ranks, where tokens are ranked: the last prompt token, as published, or all of the last question alike."""
    transfer: bool = True
    """false: dropped tokens are lost (the pure-drop baseline)."""

    @property
    def facts(self) -> SelectionFacts:
        return SELECTION_FACTS[self.select]

    @property
    def has_weights(self) -> bool:
        """Whether a cross-attention belongs to it."""
        return self.transfer and self.keep < 1


@dataclass
class TransVConfig:
    """Token transfer inside the decoder (paper 3.3)."""

    stages: dict[str, TransVStage] = field(default_factory=dict)
    """Named stages in order of rising layer; set one to null to remove it. None at all: TransV is off."""
    schedule: Literal["", "progressive"] = ""
    """In place of stages: progressive, a stage before each attention block, each leaves the same share of tokens."""
    keep: float = ranged(lambda x: 0 < x < 1, 0.1, "above 0 and below 1")
    """With a schedule: fraction of the ORIGINAL vision tokens that its last stage leaves."""
    gate: float = ranged(lambda x: -1 < x < 1, 0.0, "between -1 and 1")
    """tanh(alpha) of a transfer that begins: 0 as published. What stands behind a gate learns as fast as it is open."""
    prenorm: bool = True
    """Normalise queries and keys before the cross-attention; false is the paper's form."""
    keys: Literal["dropped", "all"] = "dropped"
    """Keys and values: the dropped vision tokens, or all of them (a variant for ablations)."""
    queries: Literal["instruction", "instruction+answer"] = "instruction"
    """Who receives: instruction tokens only, or answer tokens too (as in the authors' training code)."""


@dataclass
class LoraConfig:
    """Low-rank adapters beside frozen linear maps; the export holds them merged, and alone in export/adapter/."""

    rank: int = at_least(0, 0, "0 (no adapters) or more")
    """Rank of the adapters; 0: none."""
    alpha: float = above(0, 16.0)
    """What an adapter adds is scaled by alpha / rank."""
    dropout: float = share(0.0, "a share from 0 to below 1")
    """Share of an adapter's inputs that are set to 0 while it learns."""
    targets: list[str] = field(default_factory=lambda: ["attention", "mamba", "mlp"])
    """What gets an adapter: attention, mamba, mlp, projector, transv, or single maps such as attention.q or mamba.in.
    In a part with adapters these alone learn, at the rate of the part (optim.lrs)."""
    weights: str = ""
    """Adapters to start from: of a run or its export, or a folder of peft; empty: adapters that add nothing yet."""


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
    towers: dict[str, TowerConfig] = field(default_factory=dict)
    """Vision encoders by name; the tokens of several are laid side by side in each frame."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    transv: TransVConfig = field(default_factory=TransVConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    kernel: KernelConfig = field(default_factory=KernelConfig)

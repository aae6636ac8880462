"""Small decoders with all weights away from zero, and prompts with vision tokens in them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from timeviper.config import DecoderConfig, TransVConfig, TransVStage
from timeviper.kernels.bounds import Bounds
from timeviper.model.decoder import Decoder, DecoderOutput
from timeviper.pack import Kind

torch.set_num_threads(1)  # tensors of a few kilobytes: threads would only wait for each other

HYBRID = DecoderConfig(
    family="nemotron_h",
    layout="M-*M-*M-",
    vocab_size=61,
    width=24,
    mlp_width=40,
    heads=6,
    kv_heads=2,
    head_dim=8,
    ssm_heads=6,
    ssm_head_dim=4,
    ssm_state=5,
    ssm_groups=3,
    conv_kernel=4,
    chunk_size=16,
    max_tokens=100_000,
)
PLAIN = replace(HYBRID, family="qwen2", layout="*-*-*-", rope_theta=100.0)

UNIFORM = {"early": TransVStage(layer=1, keep=0.5, select="uniform")}
GUIDED = {"early": TransVStage(layer=2, keep=0.5, select="attention")}
PUBLISHED = {
    "early": TransVStage(layer=1, keep=0.5, select="uniform"),
    "late": TransVStage(layer=5, keep=0.2, select="attention"),
}
PLAIN_GUIDED = {
    "early": TransVStage(layer=1, keep=0.5, select="uniform"),
    "late": TransVStage(layer=4, keep=0.2, select="attention"),
}
MAMBA = {
    "early": TransVStage(layer=3, keep=0.5, select="mamba", query="question"),
    "late": TransVStage(layer=6, keep=0.2, select="mamba"),
}

SCHEDULES = {
    "off": (HYBRID, {}),
    "uniform": (HYBRID, UNIFORM),
    "guided": (HYBRID, GUIDED),
    "published": (HYBRID, PUBLISHED),
    "rope": (PLAIN, PLAIN_GUIDED),
    "question": (HYBRID, {name: replace(stage, query="question") for name, stage in PUBLISHED.items()}),
    "rope question": (PLAIN, {name: replace(stage, query="question") for name, stage in PLAIN_GUIDED.items()}),
    "mamba": (HYBRID, MAMBA),
}


def make_decoder(cfg: DecoderConfig, stages: dict[str, TransVStage] | None = None, seed: int = 0, **options) -> Decoder:
    """In float64, with biases, gains and gates that a wrong wiring cannot hide behind."""
    torch.manual_seed(seed)
    decoder = Decoder(cfg, TransVConfig(stages=dict(stages or {}), **options)).double()
    with torch.no_grad():
        for name, p in decoder.named_parameters():
            if name.endswith("alpha"):
                p.fill_(0.7)
            elif name.endswith("A_log"):
                p.uniform_(-3, 0)
            elif p.ndim == 1:
                p.add_(torch.randn_like(p) * 0.3)
    return decoder


@dataclass
class Prompt:
    x: Tensor  # [L, D]
    kind: Tensor  # [L]

    @property
    def vision(self) -> int:
        return int((self.kind == Kind.VISION).sum())


def kinds(pattern: str) -> Tensor:
    """`"2c5v3i2a"` -> 2 context, 5 vision, 3 instruction and 2 answer tokens."""
    found, count = [], ""
    for letter in pattern:
        if letter.isdigit():
            count += letter
        else:
            found += ["cvia".index(letter)] * int(count)
            count = ""
    return torch.tensor(found, dtype=torch.uint8)


PATTERNS = ("2c9v4i3a", "5c", "1c1v2i2a", "3c6v2i7v4i", "1c30v5i2a4i3a", "1v1i", "12v3i1a")


def make_prompts(patterns=PATTERNS, width: int = HYBRID.width, seed: int = 1) -> list[Prompt]:
    torch.manual_seed(seed)
    return [Prompt(torch.randn(len(k), width, dtype=torch.float64), k) for k in map(kinds, patterns)]


def run(decoder: Decoder, prompts: list[Prompt], **options) -> DecoderOutput:
    """All prompts in one pack."""
    x, kind = (torch.cat([getattr(p, name) for p in prompts]) for name in ("x", "kind"))
    return decoder(x, Bounds(len(p.kind) for p in prompts), kind, **options)


def logits(decoder: Decoder, prompts: list[Prompt]) -> list[Tensor]:
    """Of what is left of each prompt after the last block."""
    out = run(decoder, prompts)
    return list(decoder.project(out.hidden).split(list(out.bounds.lengths)))

"""Small models and packs for the plan's laws, and what torch itself says of them."""

from __future__ import annotations

import weakref
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from timeviper.config import LoraConfig, ModelConfig, ParallelConfig, TowerConfig, TransVConfig, TransVStage
from timeviper.config.presets import tiny
from timeviper.model import lora
from timeviper.model.layers import RMSNorm
from timeviper.model.mamba2 import Scan
from timeviper.model.transv import Transfer
from timeviper.model.viper import TimeViper
from timeviper.pack import IGNORE, Pack
from timeviper.parallel import wrap_blocks

ALL = ("projector", "decoder", "transv")
SIGLIP = TowerConfig(
    family="siglip",
    image_size=32,
    patch_size=8,
    width=64,
    layers=3,
    heads=4,
    mlp_width=128,
    feature_layer=-2,
    tokens=4,
)
DINO = replace(SIGLIP, family="dinov2", registers=4)


def hybrid(**towers: TowerConfig) -> ModelConfig:
    """The tiny preset with both kinds of TransV stages."""
    return staged(TransVStage(5, 0.5, "uniform"), TransVStage(8, 0.1, "attention"), **towers)


def staged(early: TransVStage, late: TransVStage, **towers: TowerConfig) -> ModelConfig:
    cfg = tiny()
    cfg.towers |= towers
    cfg.transv = TransVConfig(stages={"early": early, "late": late})
    return cfg


def plain(family, **transv) -> ModelConfig:
    """The transformer control with the same stages."""
    cfg = tiny()
    cfg.decoder.family, cfg.decoder.layout = family, "*-" * 4
    stages = {"early": TransVStage(3, 0.5, "uniform"), "late": TransVStage(6, 0.1, "attention")}
    cfg.transv = TransVConfig(stages=dict(stages), **transv)
    return cfg


def adapted(cfg: ModelConfig, *targets: str, dropout: float = 0.0) -> ModelConfig:
    cfg.lora = LoraConfig(rank=8, targets=list(targets), dropout=dropout)
    return cfg


def make_pack(frames=(6, 4, 0), text=(20, 30, 15), tokens_per_frame: int = 4, image_size: int = 32) -> Pack:
    """Sequences of 2 context, the vision, some instruction and 5 answer tokens."""
    kind, labels = [], []
    for f, t in zip(frames, text):
        labels += [IGNORE] * (f * tokens_per_frame + t - 6) + [7] * 5 + [IGNORE]
        kind += [0] * 2 + [1] * (f * tokens_per_frame) + [2] * (t - 7) + [3] * 5
    return Pack(
        ids=torch.full((len(kind),), 3),
        labels=torch.tensor(labels),
        kind=torch.tensor(kind, dtype=torch.uint8),
        lengths=[f * tokens_per_frame + t for f, t in zip(frames, text)],
        frames=torch.randint(0, 255, (sum(frames), 3, image_size, image_size), dtype=torch.uint8),
        frame_times=torch.zeros(sum(frames), dtype=torch.float64),
        frame_counts=list(frames),
    )


def build(cfg: ModelConfig, trainable, checkpointed=frozenset(), bfloat16: bool = False, piece: int = 0) -> TimeViper:
    """The model as training runs it on one rank: adapters, frozen parts, checkpointing, float32 where it stays."""
    model = TimeViper(cfg)
    lora.attach(model, cfg.lora)
    for name, p in model.named_parameters():
        if "lora" in name:
            nn.init.normal_(p, std=0.1)
    if bfloat16:
        model.bfloat16()
        for module in model.modules():
            if isinstance(module, (Scan, RMSNorm)):
                module.float()
            elif isinstance(module, Transfer):
                module.alpha.data = module.alpha.data.float()
    model.freeze(trainable)
    wrap_blocks(
        model, ParallelConfig(activation_checkpointing=",".join(checkpointed) or "none", tokens_per_piece=piece)
    )
    return model


# torch's counter sees mm, addmm, bmm, baddbmm and convolutions, also inside of custom autograd functions. It does not
# see the fused attention of CPUs, nor baddbmm in place, with which the scan passes its states on. These are the
# counter's own formulas for the same products under the names that it does not know.
aten = torch.ops.aten


def _square(q, k) -> int:
    return 2 * q[0] * q[1] * q[2] * k[2] * q[3]


UNSEEN = {
    aten.baddbmm_: lambda out, a, b, *_, out_shape=None, **__: 2 * a[0] * a[1] * a[2] * b[2],
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *_, out_shape=None, **__: 2 * _square(q, k),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda dy, q, k, *_, out_shape=None, **__: 5 * _square(q, k)
    ),
}


def counted(model: nn.Module, pack: Pack) -> tuple[int, int]:
    """FLOPs that torch counts in a forward pass and in its backward pass."""
    with FlopCounterMode(display=False, custom_mapping=UNSEEN) as forward:
        out = model(pack)
    with FlopCounterMode(display=False, custom_mapping=UNSEEN) as backward:
        out.loss_sum.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def saved_bytes(model: nn.Module, pack: Pack) -> int:
    """Bytes that autograd keeps of a pack when its forward pass ends: unique storages, without parameters and frames.

    What is saved and let go again before the end (inputs of checkpointed blocks that need no gradient) is not kept.
    """
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers(), pack.frames]}
    kept: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in own and storage._cdata not in kept:
            kept[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, kept.pop, storage._cdata)
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = model(pack)
    assert out.loss_sum.requires_grad
    return sum(kept.values())

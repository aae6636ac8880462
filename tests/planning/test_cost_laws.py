"""The plan's FLOPs against torch's counter, and its bytes against what autograd really keeps."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from bench_pieces import LiveBytes
from cost_helpers import (
    ALL,
    DINO,
    SIGLIP,
    adapted,
    build,
    counted,
    hybrid,
    make_pack,
    plain,
    saved_bytes,
    staged,
)
from torch import nn

from timeviper.config import BLOCK_TYPES, ModelConfig, TransVConfig, TransVStage
from timeviper.config.shape import PackShape, Segment, SegmentShape, mean_tokens, segment_shapes
from timeviper.kernels.bounds import Bounds
from timeviper.model.decoder import Block
from timeviper.model.flops import Execution, executed_flops, model_flops, total
from timeviper.model.gradients import Gradients
from timeviper.model.layers import RMSNorm
from timeviper.model.mamba2 import Scan
from timeviper.model.state import Span
from timeviper.model.viper import TimeViper
from timeviper.planning.activations import Saved, _Language, saved_activations

torch.set_num_threads(1)

EVERY = frozenset(BLOCK_TYPES)
NONE: frozenset[str] = frozenset()
MANY = ((3, 3, 3, 1, 0, 60), (20, 20, 20, 20, 20, 300))
LONG = ((150,), (60,))

# model, trained parts, frames and text of the sequences, checkpointed types
CASES = {
    "no transfers": (
        replace(hybrid(), transv=TransVConfig()),
        ("projector", "decoder"),
        ((6, 4, 0), (20, 30, 15)),
        NONE,
    ),
    "a pack": (hybrid(), ALL, ((6, 4, 0), (20, 30, 15)), NONE),
    "many sequences": (hybrid(), ALL, MANY, NONE),
    "one long": (hybrid(), ALL, LONG, NONE),
    "checkpointed": (hybrid(), ALL, MANY, EVERY),
    "checkpointed in part": (hybrid(), ALL, MANY, frozenset({"mamba", "transv"})),
    "projector alone": (hybrid(), ("projector",), ((6, 4, 0), (20, 30, 15)), EVERY),
    "transv alone": (hybrid(), ("transv",), ((6, 4), (20, 30)), EVERY),
    "text alone": (hybrid(), ALL, ((0, 0), (40, 70)), NONE),
    "tower learns": (hybrid(), ("tower", *ALL), ((6, 4, 0), (20, 30, 15)), NONE),
    "tower learns, checkpointed": (hybrid(), ("tower", *ALL), ((6, 4, 0), (20, 30, 15)), EVERY),
    "two towers": (hybrid(second=SIGLIP), ("tower", "projector"), ((6, 4), (20, 30)), NONE),
    "llama": (plain("llama"), ALL, MANY, NONE),
    "llama, checkpointed": (plain("llama"), ALL, MANY, EVERY),
    "qwen2, paper form": (plain("qwen2", prenorm=False, keys="all"), ALL, LONG, NONE),
    "adapters": (adapted(hybrid(), "attention", "mamba", "mlp"), ("projector", "decoder"), MANY, NONE),
    "adapters alone": (adapted(hybrid(), "attention", "mamba", "mlp"), ("decoder",), MANY, EVERY),
    "a few adapters": (adapted(hybrid(), "attention.q", "mlp.down"), ("decoder", "transv"), LONG, EVERY),
    "adapters everywhere": (
        adapted(plain("llama"), "attention", "mlp", "projector", "transv"),
        ALL,
        LONG,
        NONE,
    ),
    "the question ranks": (
        staged(TransVStage(3, 0.5, "attention", "question"), TransVStage(5, 0.1, "mamba", "question")),
        ALL,
        MANY,
        NONE,
    ),
    "ranked without decay": (
        staged(TransVStage(2, 0.5, "mamba"), TransVStage(8, 0.1, "attention", "question")),
        ALL,
        ((6, 4), (50, 60)),
        EVERY,
    ),
    "dinov2": (hybrid(second=DINO), ("tower", *ALL), ((6, 4), (20, 30)), EVERY),
}


def tokens_per_frame(cfg: ModelConfig) -> int:
    return sum(tower.tokens for tower in cfg.towers.values())


@pytest.mark.parametrize("name", CASES)
def test_executed_flops_are_those_that_torch_counts(name: str) -> None:
    """Forward and backward. The loss's gradients are made in the forward pass."""
    cfg, trainable, shape, checkpointed = CASES[name]
    pack = make_pack(*shape, tokens_per_frame=tokens_per_frame(cfg))
    forward, backward = counted(build(cfg, trainable, checkpointed), pack)
    parts = executed_flops(cfg, PackShape.of(pack), trainable, Execution("cpu", checkpointed))
    whole, early = total(parts), parts["logits"].backward
    assert whole.forward + early == pytest.approx(forward, rel=1e-3)
    assert whole.backward + whole.recompute - early == pytest.approx(backward, rel=1e-3)


NARROW = ("many sequences", "checkpointed", "projector alone", "adapters", "llama", "one long")


@pytest.mark.parametrize(("name", "bfloat16"), [*((n, False) for n in CASES), *((n, True) for n in NARROW)])
def test_activations_are_those_that_autograd_keeps(name: str, bfloat16: bool) -> None:
    cfg, trainable, shape, checkpointed = CASES[name]
    pack = make_pack(*shape, tokens_per_frame=tokens_per_frame(cfg))
    kept = saved_bytes(build(cfg, trainable, checkpointed, bfloat16), pack)
    law = saved_activations(cfg, PackShape.of(pack), trainable, Execution("cpu", checkpointed), 2 if bfloat16 else 4)
    assert sum(saved.kept for saved in law) == pytest.approx(kept, rel=0.02)


@pytest.mark.parametrize("checkpointed", [NONE, EVERY])
@pytest.mark.parametrize("frames", [20, 60, 200])
def test_the_laws_hold_at_other_lengths(frames: int, checkpointed: frozenset[str]) -> None:
    cfg, pack = hybrid(), make_pack((frames,), (40,))
    model, shape = build(cfg, ALL, checkpointed), PackShape.of(pack)
    law = saved_activations(cfg, shape, ALL, Execution("cpu", checkpointed), 4)
    assert sum(saved.kept for saved in law) == pytest.approx(saved_bytes(model, pack), rel=0.01)
    assert total(executed_flops(cfg, shape, ALL, Execution("cpu", checkpointed))).total == pytest.approx(
        sum(counted(model, pack)), rel=1e-3
    )


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(("letter", "piece"), [("M", 0), ("M", 1024), ("-", 0), ("-", 1024), ("*", 512)])
def test_a_block_needs_what_the_law_says_in_its_backward_pass(letter: str, piece: int, bfloat16: bool) -> None:
    """The largest moment of training: one checkpointed block, computed again, with its gradients."""
    cfg = hybrid().decoder
    sizes = dict(width=256, mlp_width=896, ssm_heads=16, heads=8, kv_heads=2, chunk_size=32, layout=letter)
    cfg = replace(cfg, **sizes)
    block = Block(cfg, letter)
    if bfloat16:
        block.bfloat16()
        for module in block.modules():
            if isinstance(module, (Scan, RMSNorm)):
                module.float()
    L = 8192  # more than a lean mixer computes again at a time
    x = torch.randn(L, cfg.width, dtype=torch.bfloat16 if bfloat16 else torch.float32, requires_grad=True)
    dy, span = torch.randn_like(x), Span.fresh(Bounds([L]))
    block.in_pieces(piece, nullcontext, x, span)  # what the bounds keep for the next layer is made once
    with LiveBytes() as live:
        block.in_pieces(piece, nullcontext, x, span).backward(dy)
    weights = sum(p.numel() * (4 + p.itemsize if piece else p.itemsize) for p in block.parameters())
    stream = SegmentShape(Segment("", None, range(1)), (0,), (0,), (L,))
    model = ModelConfig(preset="", towers={}, decoder=cfg)
    law = _Language(
        model, PackShape((0,), (L,), 0), Gradients.of(model, ["decoder"]), Execution("cpu", EVERY, piece), x.itemsize
    )
    saved: Saved = law.block(0, stream)
    peak = live.peak - x.nbytes - dy.nbytes  # pieces of these are made inside
    states = saved.kept - x.nbytes
    assert states + saved.recomputed + saved.gradients + weights == pytest.approx(peak, rel=0.1)


def test_model_flops_are_the_maps_the_pairs_and_the_recurrence() -> None:
    """The maps as hooks on the real modules see them, after TransV; attention and scan from their definitions."""
    cfg, pack = hybrid(), make_pack((12,), (40,))
    model = build(cfg, ALL)
    maps = 0.0

    def note(module: nn.Linear, args, out) -> None:
        nonlocal maps
        times = 3 if module.weight.requires_grad else 1
        maps += times * 2 * args[0].numel() / module.in_features * module.weight.numel()

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith("towers"):
            module.register_forward_hook(note)
    model(pack)
    dec, L0, L1, L2 = cfg.decoder, 88, 64, 44  # 48 vision tokens, then 24, then 4
    per_head = 4 * dec.heads * dec.head_dim
    pairs = 3 * per_head * (L0 * (L0 + 1) / 2 + L2 * (L2 + 1) / 2 + 40 * 24 + 40 * 20)
    scan = 3 * 4 * dec.ssm_heads * dec.ssm_head_dim * dec.ssm_state * (2 * L0 + 2 * L1)
    head = 3 * 2 * 5 * dec.vocab_size * dec.width
    tower = cfg.towers["main"]
    first = 2 * pack.num_vision * tower.width * dec.width  # the projector's input has no gradient
    ranking = 2 * dec.heads * dec.head_dim * L1
    once = 2 * 2 * (dec.heads + dec.kv_heads * L1) * dec.head_dim * dec.width  # q and k of the ranking: forward alone
    parts = model_flops(cfg, PackShape.of(pack), ALL)
    counted_parts = total({name: part for name, part in parts.items() if name != "tower"}).total
    assert counted_parts == pytest.approx(maps - first - once + pairs + scan + head + ranking, rel=1e-9)
    assert total(parts).recompute == 0


def test_a_pack_costs_what_its_sequences_cost() -> None:
    cfg = hybrid()
    parts = [PackShape((f,), (t,), 5) for f, t in ((6, 20), (4, 30), (0, 15))]
    whole = PackShape((6, 4, 0), (20, 30, 15), 15)
    single = sum(total(model_flops(cfg, p, ALL)).total for p in parts)
    assert total(model_flops(cfg, whole, ALL)).total == pytest.approx(single)


def test_stored_features_are_not_encoded() -> None:
    cfg = hybrid()
    encoded, stored = PackShape((16,), (20,), 5), PackShape((16,), (20,), 5, stored=16)
    for a, b in (
        (model_flops(cfg, encoded, ALL), model_flops(cfg, stored, ALL)),
        (executed_flops(cfg, encoded, ALL, Execution()), executed_flops(cfg, stored, ALL, Execution())),
    ):
        assert a["tower"].total > 0 == b["tower"].total
        assert {k: v for k, v in a.items() if k != "tower"} == {k: v for k, v in b.items() if k != "tower"}


def test_shapes_follow_the_decoder() -> None:
    """Tokens before and after every transfer are those of a real forward pass."""
    cfg, pack = hybrid(), make_pack((6, 4, 0), (20, 30, 15))
    out = TimeViper(cfg)(pack).decoder
    assert out is not None
    shapes = segment_shapes(cfg, PackShape.of(pack))
    assert {s.segment.name: list(s.vision) for s in shapes[1:]} == out.kept
    assert shapes[-1].num_tokens == len(out.hidden)
    mean = (5 * 105 + 3 * shapes[1].num_tokens + 2 * shapes[2].num_tokens) / 10
    assert mean_tokens(cfg, PackShape.of(pack)) == mean

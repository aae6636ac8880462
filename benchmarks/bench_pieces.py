"""Memory and time of a training step whose blocks are computed again in pieces, at a length and at eight times it.

python benchmarks/bench_pieces.py [--out benchmarks/NAME.md] [--tokens 2048] [--runs 3]

Beside it, in one process: torch's own activation checkpointing of the same blocks, and blocks that keep everything.
Memory is what live tensors hold at a time, counted at every operation: weights, gradients and all that the step makes.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch
from bench_chains import hardware
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from timeviper.config import DecoderConfig, ModelConfig, ParallelConfig, TowerConfig, TransVConfig, TransVStage
from timeviper.config.shape import PackShape, segment_shapes
from timeviper.model.viper import TimeViper
from timeviper.pack import IGNORE, Kind, Pack
from timeviper.parallel import wrap_blocks

TEXT, LABELS, PER_FRAME = 64, 32, 16  # tokens of the question and answer; labels; tokens a frame
PIECE = 512


class LiveBytes(TorchDispatchMode):
    """The most memory that tensors made inside, or added, hold at a time. Sharding resizes storages: all are asked."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and not isinstance(tensor, DTensor):
                self.add(tensor)
        self.peak = max(self.peak, sum(s.nbytes() for ref in self.storages.values() if (s := ref()) is not None))
        return out

    def add(self, tensor: Tensor) -> None:
        storage = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage()
        if storage._cdata not in self.storages:
            self.storages[storage._cdata] = weakref.ref(storage)
            weakref.finalize(storage, self.storages.pop, storage._cdata)


def config() -> ModelConfig:
    """100 M parameters in the proportions of nano9b, with both kinds of transfers."""
    decoder = DecoderConfig(
        layout="M-M-M*-M*-M-",
        vocab_size=16384,
        width=1024,
        mlp_width=3584,
        heads=8,
        kv_heads=2,
        head_dim=128,
        ssm_heads=32,
        ssm_head_dim=64,
        ssm_state=64,
        ssm_groups=8,
        max_tokens=1 << 20,
    )
    tower = TowerConfig(
        family="vit",
        image_size=32,
        patch_size=8,
        width=64,
        layers=1,
        heads=2,
        mlp_width=64,
        feature_layer=-1,
        tokens=16,
    )
    stages = {
        "early": TransVStage(layer=2, keep=0.5, select="uniform"),
        "late": TransVStage(layer=8, keep=0.1, select="attention"),
    }
    return ModelConfig(preset="", towers={"main": tower}, decoder=decoder, transv=TransVConfig(stages=stages))


def make_pack(tokens: int) -> Pack:
    """One video with a question and its answer."""
    frames = (tokens - TEXT) // PER_FRAME
    kind = [Kind.CONTEXT] * 2 + [Kind.VISION] * (frames * PER_FRAME)
    kind += [Kind.INSTRUCTION] * (TEXT - 2 - LABELS) + [Kind.ANSWER] * LABELS
    labels = [IGNORE] * (len(kind) - LABELS - 1) + [7] * LABELS + [IGNORE]
    return Pack(
        ids=torch.full((len(kind),), 3),
        labels=torch.tensor(labels),
        kind=torch.tensor(kind, dtype=torch.uint8),
        lengths=[len(kind)],
        frames=torch.randint(0, 255, (frames, 3, 32, 32), dtype=torch.uint8),
        frame_times=torch.arange(frames, dtype=torch.float64),
        frame_counts=[frames],
    )


def in_pieces(model: TimeViper, size: int) -> None:
    wrap_blocks(model, ParallelConfig(activation_checkpointing="all", tokens_per_piece=size))


def by_torch(model: TimeViper) -> None:
    for part in (model.decoder.blocks, model.decoder.transv):
        for name, block in list(part.named_children()):
            part.register_module(name, checkpoint_wrapper(block))


FORMS: dict[str, Callable[[TimeViper], None]] = {
    f"pieces of {PIECE}": lambda m: in_pieces(m, PIECE),
    "whole blocks": lambda m: in_pieces(m, 0),
    "whole blocks, torch's checkpoint": by_torch,
    "nothing again": lambda m: None,
}


SHORT_ALONE = ("whole blocks", "nothing again")  # at the long length they take minutes, and tell nothing new


@dataclass
class Row:
    """One form at one length."""

    peak: int
    """Bytes."""
    inputs: int
    """Of them what the blocks' inputs are, which every form of checkpointing keeps."""
    seconds: float
    """Of a forward and a backward pass, median."""


def block_inputs(cfg: ModelConfig, pack: Pack) -> int:
    shapes = segment_shapes(cfg, PackShape.of(pack))
    return sum(4 * cfg.decoder.width * s.num_tokens * len(s.segment.blocks) for s in shapes)


def build(form: str) -> TimeViper:
    torch.manual_seed(0)
    model = TimeViper(config())
    model.freeze(["projector", "decoder", "transv"])
    with torch.no_grad():
        for p in model.decoder.transv.parameters():
            p.add_(0.01)  # gates that are open
    FORMS[form](model)
    return model


def measure(form: str, pack: Pack, runs: int) -> Row:
    model = build(form)

    def step() -> None:
        model.zero_grad()
        model(pack).loss_sum.backward()

    seconds = []
    for _ in range(runs):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    model.zero_grad()
    with LiveBytes() as live:
        for p in model.parameters():
            live.add(p)
        step()
    return Row(live.peak, block_inputs(config(), pack), statistics.median(seconds))


def page(rows: dict[tuple[str, int], Row], tokens: int) -> str:
    long = 8 * tokens
    weights = sum(4 * p.numel() for p in nn.ModuleList([TimeViper(config())]).parameters())
    out = [
        "# A training step in pieces along the stream",
        "",
        f"{hardware()}, torch {torch.__version__}, {torch.get_num_threads()} thread(s), {date.today()}.",
        f"{weights / 4e6:.0f} M parameters in float32, layout `{config().decoder.layout}`, one video with a question; "
        f"`python benchmarks/bench_pieces.py`.",
        "",
        "Peak: all that live tensors hold, weights and gradients included. Beside inputs: without the blocks' inputs,",
        "which checkpointing keeps in every form. Seconds: processor time of both passes on one thread, median.",
        "",
        f"| blocks are computed again | peak at {tokens:,}, MB | at {long:,} | beside inputs | at {long:,} | ratio "
        f"| seconds at {tokens:,} | at {long:,} | to torch's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    peer = "whole blocks, torch's checkpoint"
    for form in FORMS:
        short, far = rows[form, tokens], rows.get((form, long))
        cells = [form, f"{short.peak / 1e6:,.0f}"]
        if far is None:
            cells += ["-"] * 4 + [f"{short.seconds:.2f}", "-", "-"]
        else:
            beside = [r.peak - r.inputs for r in (short, far)]
            cells += [f"{far.peak / 1e6:,.0f}", *(f"{b / 1e6:,.0f}" for b in beside), f"{beside[1] / beside[0]:.2f}"]
            cells += [f"{short.seconds:.2f}", f"{far.seconds:.2f}", f"{far.seconds / rows[peer, long].seconds:.2f}"]
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)  # so that the processor's time is that of the step, whatever else runs
    rows = {}
    for tokens in (args.tokens, 8 * args.tokens):
        for form in FORMS:
            if form in SHORT_ALONE and tokens > args.tokens:
                continue
            rows[form, tokens] = row = measure(form, make_pack(tokens), args.runs)
            print(f"{form}, {tokens:,}: {replace(row)}", flush=True)
    text = page(rows, args.tokens)
    print(text)
    out = args.out or Path(__file__).parent / f"pieces_{platform.machine()}-cpu-1thread_{date.today()}.md"
    out.write_text(text)


if __name__ == "__main__":
    main()

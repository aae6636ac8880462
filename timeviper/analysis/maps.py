"""Maps of what every token reads of every other, block by block: hidden attention of scans, softmax attention.

For short samples alone: rows of all queries take L^2 H, some queries at a time, and of each head a picture of at most
PIXELS cells a side is kept, with the exact mean over heads beside it.

    Mamba-2     |M[i,j]| = |C_i . B_j| exp(s_i - s_j) step_j     rows brought to sum 1, head by head
    attention   softmax, which sums to 1 already

`without_dt` leaves out step_j, as the paper's notebook does (arXiv 2511.16595, fig. 8): tokens that hardly write count
as if they did. Neither shows the convolution, x, D, gate or norm (see `relevance.py`).
Letters: L tokens of the sample, l of them before a block, H heads, P cells a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper.analysis.halflife import NAMES, kinds
from timeviper.analysis.hidden import Asked, Scanned, attention_rows, rows
from timeviper.analysis.nulls import kernel, mean_distance, same_reach, shares, sink, to_part, uniform
from timeviper.analysis.subject import AnalysisError
from timeviper.config.shape import Segment
from timeviper.datamodules.cost import Item
from timeviper.model.attention import Attention
from timeviper.model.decoder import Decoder
from timeviper.model.hooks import hooked
from timeviper.model.mamba2 import Mamba2
from timeviper.model.transv import Stream
from timeviper.model.viper import TimeViper
from timeviper.pack import Kind, Pack

MOST = 4096  # tokens of a sample
SHOWN = 12  # blocks of a page
PIXELS = 256  # cells of a picture a side
ENTRIES = 1 << 24  # of rows at a time: 128 MB in float64
PARTS = ("vision", "instruction", "response")  # the paper's: instruction is all that is neither of the others


@dataclass(frozen=True)
class BlockMap:
    """One block's map of one sample."""

    block: int
    kind: str
    """`mamba` or `attention`."""
    behind: str
    """The TransV stage before it; empty: none."""
    tokens: int
    heads: Tensor
    """`[H, P, P]` float32: row shares a cell, mean over its entries (those of a triangle alone)."""
    mean: Tensor
    """`[l, l]` float32: mean over heads of row shares."""
    reach: list[float]
    """Mean distance of each head, in tokens."""
    kinds: Tensor
    """`[l]`, as `halflife.kinds` has them."""


@dataclass(frozen=True)
class Curve:
    """Shares of one block, beside rows that know nothing."""

    block: int
    kind: str
    behind: str
    to: dict[str, dict[str, float]]
    """By part (of PARTS): what was measured, and each null line by name."""
    by_kind: dict[str, dict[str, float]]
    """share(A -> B) by kind of token, the first token (`sink`) apart."""
    reach: float
    """Mean distance over rows and heads, in tokens."""
    half: float
    """That of a kernel with this reach."""


def fitting(item: Item) -> None:
    """AnalysisError for a sample that has no frames, or more tokens than maps are made of."""
    key, tokens = item.unit.key, item.tokens
    if not item.num_frames:
        raise AnalysisError(f"{key} has no video: maps show who reads whom between video, question and answer")
    if tokens > MOST:
        raise AnalysisError(
            f"{key} has about {tokens:,} tokens, {item.num_frames:,} frames: maps are of all pairs of tokens and end "
            f"at {MOST:,}. `timeviper look QUESTION --run RUN --video FILE` shows what an answer reads at any length; "
            f"or read fewer frames, such as data.frames.max_frames={max(item.num_frames * MOST // (2 * tokens), 1)}"
        )


def some(maps: Sequence[BlockMap]) -> list[BlockMap]:
    """Those to be drawn of many: all attention blocks and evenly spaced scans, SHOWN in all."""
    attention = [one for one in maps if one.kind == "attention"][:SHOWN]
    scans, room = [one for one in maps if one.kind != "attention"], SHOWN - len(attention)
    count = min(room, len(scans))
    chosen = {round(i * (len(scans) - 1) / max(count - 1, 1)) for i in range(count)}
    kept = {one.block for one in attention} | {scans[i].block for i in chosen}
    return [one for one in maps if one.block in kept]


@torch.no_grad()
def see(model: TimeViper, pack: Pack, blocks: Sequence[int], without_dt: bool = False) -> Iterator[BlockMap]:
    """Maps of a sample of one sequence. Costs a forward pass and L^2 H a block."""
    if (n := len(pack.ids)) > MOST:
        raise AnalysisError(f"a sample of {n:,} tokens is too long for maps, which end at {MOST:,}")
    found: list[BlockMap] = []
    with _watching(model.decoder, pack, blocks, without_dt, found.append):
        model(pack)
    yield from found


@contextmanager
def _watching(
    decoder: Decoder, pack: Pack, blocks: Sequence[int], without_dt: bool, give: Callable[[BlockMap], None]
) -> Iterator[None]:
    kind, here = kinds(pack), list[tuple[Segment, Stream]]()

    def give_map(block: int, name: str, of: Callable[[Tensor], Tensor]) -> None:
        segment, stream = here[0]
        give(_map(block, name, segment.name, kind[stream.index], of))

    def scan(block: int) -> Any:
        def add(module: Any, args: tuple[Any, ...]) -> None:
            x, dt, B, C, span, *_ = args
            A = -module.A_log.to(torch.promote_types(module.A_log.dtype, torch.float32)).exp()
            tokens = Scanned.of(x, dt, A, B, C, module.dt_bias, span.bounds)
            if without_dt:
                tokens = replace(tokens, step=torch.ones_like(tokens.step))
            give_map(block, "mamba", lambda places: rows(tokens.queries(places), tokens))

        return add

    def attend(block: int) -> Any:
        def add(module: Attention, args: tuple[Any, ...]) -> None:
            x, span, *_ = args
            (k, _), q = module.look_at(x, span.rope), module.query(x, span.rope)
            give_map(block, "attention", lambda places: attention_rows(Asked(q[places], places), k))

        return add

    hooks = []
    for i in blocks:
        mixer = decoder.blocks[i].mixer
        if isinstance(mixer, Mamba2):
            hooks.append(mixer.ssm.register_forward_pre_hook(scan(i)))
        elif isinstance(mixer, Attention):
            hooks.append(mixer.register_forward_pre_hook(attend(i)))
    enter = decoder.watched(lambda segment, stream: here.__setitem__(slice(None), [(segment, stream)]))
    with hooked(hooks), enter:
        yield


def _map(block: int, name: str, behind: str, kind: Tensor, of: Callable[[Tensor], Tensor]) -> BlockMap:
    """Rows of all queries, `of(places [K])` -> `[K, H, l]`, some at a time."""
    length = len(kind)
    cells = torch.arange(length, device=kind.device) * min(PIXELS, length) // length
    P = int(cells[-1]) + 1
    pool = F.one_hot(cells, P).double()  # [l, P]
    one = of(torch.zeros(1, dtype=torch.int64, device=kind.device))
    H, at_once = one.shape[1], max(ENTRIES // (one.shape[1] * length), 1)
    heads, reach = torch.zeros(H, P, P, dtype=torch.float64), torch.zeros(H, dtype=torch.float64)
    mean = torch.zeros(length, length)
    for places in torch.arange(length, device=kind.device).split(at_once):
        found = of(places).double().abs()
        share = found / found.sum(-1, keepdim=True).clamp(min=1e-300)  # [K, H, l]
        mean[places.cpu()] = share.mean(1).float().cpu()
        back = places[:, None, None] - torch.arange(length, device=kind.device)
        reach += (share * back).sum((0, 2)).cpu()
        heads.index_add_(1, cells[places].cpu(), (share @ pool).transpose(0, 1).cpu())
    seen = (pool.T @ torch.ones(length, length, dtype=torch.float64, device=kind.device).tril() @ pool).cpu()
    return BlockMap(
        block, name, behind, length, (heads / seen.clamp(min=1)).float(), mean, (reach / length).tolist(), kind.cpu()
    )


def curve(one: BlockMap) -> Curve:
    """A block's shares and its null lines."""
    a, length = one.mean.double(), one.tokens
    parts = parts_of(one.kinds)
    reach = mean_distance(a)
    half = same_reach(length, reach)
    first = float(a[:, 0].mean())
    nulls = {
        "uniform": uniform(length),
        "same reach": uniform(length) if half == float("inf") else kernel(length, half),
        "same sink": sink(length, first),
    }
    measured = shares(a, parts)
    to = {part: {"measured": to_part(measured, part)} for part in PARTS}
    for name, null in nulls.items():
        found = shares(null, parts)
        for part in PARTS:
            to[part][name] = to_part(found, part)
    return Curve(one.block, one.kind, one.behind, to, shares(a, kinds_of(one.kinds)), reach, half)


def parts_of(kind: Tensor) -> dict[str, Tensor]:
    """The paper's three parts, `[l]` bool each."""
    vision, response = kind == Kind.VISION, kind == Kind.ANSWER
    return {"vision": vision, "instruction": ~vision & ~response, "response": response}


def kinds_of(kind: Tensor) -> dict[str, Tensor]:
    """The kinds that there are, `[l]` bool each; the first token by itself, because much attention rests there."""
    first = torch.zeros_like(kind, dtype=torch.bool)
    first[0] = True
    found = {name: (kind == number) & ~first for number, name in enumerate(NAMES)}
    return {"sink": first} | {name: which for name, which in found.items() if which.any()}

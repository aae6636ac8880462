"""A prompt into the decoder's state: whole, or piece by piece as frames arrive.

Piece by piece, the blocks between two transfers form a segment that carries its convolution, state space and
key states from chunk to chunk. A stage where numbers alone decide (uniform) knows beforehand which tokens stay, so a
chunk goes through it at once: survivors go on, of the dropped tokens only cross-attention keys and values are kept for
the text behind them. One that scores (attention) has to wait for the last prompt token, and holds the residuals at
its boundary.

Peak memory grows with the number of frames only by what must be kept, `kept_bytes`: with V[i] vision tokens after
stage i (V[0] before the first), T text tokens, e bytes an element,

    each attention block behind stage i              (V[i] + T) * 2 * Hkv * P * e     keys and values
    each stage i that transfers                  (V[i-1] - V[i]) * 2 * Hkv * P * e     of dropped tokens
                                                  (V[i-1] with `transv.keys: all`)
    each stage i that scores                       (V[i-1] + T) * (D * e + 16 * H)     residuals and scores
                                                  (16 * H by attention; see `ByScore.bytes_per_token`)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from timeviper.config.shape import Segment
from timeviper.kernels.bounds import Bounds
from timeviper.model.boundary import schedule
from timeviper.model.decoder import Decoder, DecoderOutput
from timeviper.model.selection import SELECTIONS, ByCount, ByScore
from timeviper.model.state import DecoderState, SegmentState
from timeviper.model.transv import DroppedTokens, Stream, shorten
from timeviper.pack import Kind, parted, text_runs


@dataclass
class Prefilled:
    """S prompts that have gone through the decoder."""

    hidden: Tensor
    """`[S, D]` of their last tokens, after the final norm."""
    state: DecoderState
    kept: dict[str, list[int]]
    """Vision tokens left after each transfer stage, per sequence."""
    survivors: dict[str, list[Tensor]] = field(default_factory=dict)
    """Which they are: `[n]` int64 of each sequence, its first vision token being 0."""

    @staticmethod
    def join(parts: Sequence[Prefilled]) -> Prefilled:
        kept = {name: [n for part in parts for n in part.kept[name]] for name in parts[0].kept}
        survivors = {name: [which for part in parts for which in part.survivors[name]] for name in parts[0].survivors}
        state = DecoderState.join([part.state for part in parts])
        return Prefilled(torch.cat([part.hidden for part in parts]), state, kept, survivors)


@torch.inference_mode()
def prefill(
    decoder: Decoder,
    x: Tensor,
    bounds: Bounds,
    kind: Tensor | None = None,
) -> Prefilled:
    """Whole prompts at once: x `[L, D]` embedded, kind `[L]` (None: text only)."""
    state = decoder.empty_state(bounds.num_sequences, x.device, x.dtype)
    out = decoder(x, bounds, kind, state)
    survivors = {} if kind is None else _survivors(out, kind == Kind.VISION, bounds)
    return Prefilled(out.hidden[out.bounds.cu_seqlens[1:].long() - 1], state, out.kept, survivors)


def _survivors(out: DecoderOutput, vision: Tensor, bounds: Bounds) -> dict[str, list[Tensor]]:
    """As in `Prefilled`; vision: `[L]` bool of the stream that entered."""
    counted = vision.cumsum(0)  # up to and with each token, of the whole pack
    before = F.pad(counted, (1, 0))[bounds.cu_seqlens[:-1].long()]  # [S]
    found = {}
    for name, index in out.left.items():
        counts = out.kept[name]
        where = index[torch.nonzero_static(vision[index], size=sum(counts)).squeeze(1)]
        number = counted[where] - 1 - before[Bounds(counts, vision.device).seq_idx]
        found[name] = list(number.split(counts))
    return found


@torch.inference_mode()
def prefill_chunks(
    decoder: Decoder,
    chunks: Iterable[tuple[Tensor, Tensor]],
    vision: int | Sequence[int],
    text_count: int | None = None,
) -> Prefilled:
    """One prompt in pieces of any sizes: (x `[n, D]` embedded, kind `[n]` uint8), read one at a time.

    vision: vision tokens of the whole prompt, which the schedule counts from; where answers part its media, those of
    each group (`timeviper.pack.vision_groups`). text_count: all other tokens, those to be written included; where
    given, no key cache ever moves.
    Raises ValueError when the pieces hold other vision tokens, or are longer than the context.
    """
    left = _schedule(decoder, vision)  # in each segment
    room = None if text_count is None else [[sum(n) + text_count] for n in left]
    weight = decoder.embeddings.weight
    state = decoder.empty_state(1, weight.device, weight.dtype, room)
    last = None
    masks: dict[str, Tensor] = {}
    for chunk in stream_through(decoder, chunks, vision, state, masks):
        last = chunk.x[-1:] if len(chunk.x) else last
    if last is None:
        raise ValueError("the prompt has no token: give at least one chunk that is not empty")
    kept = {segment.name: [sum(n)] for segment, n in zip(decoder.segments[1:], left[1:])}
    return Prefilled(decoder.norm_f(last), state, kept, left_by(decoder, left, masks))


def left_by(decoder: Decoder, left: list[list[int]], masks: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    """The places of the vision tokens that each stage leaves of one prompt, its first being 0. left: how many reach
    each segment, by group; masks: as `stream_through` fills them; a stage that only counts needs none."""
    found, there = dict[str, list[Tensor]](), torch.arange(sum(left[0]))
    for i, segment in enumerate(decoder.segments[1:], 1):
        if left[i] != left[i - 1] and segment.stage is not None:
            mask, selection = masks.get(segment.name), SELECTIONS[segment.stage.select]
            if mask is None:
                assert isinstance(selection, ByCount)
                mask = selection.mask(left[i - 1], left[i], torch.device("cpu"))
            there = there[mask]
        found[segment.name] = [there]
    return found


def stream_through(
    decoder: Decoder,
    chunks: Iterable[tuple[Tensor, Tensor]],
    vision: int | Sequence[int],
    state: DecoderState,
    masks: dict[str, Tensor] | None = None,
) -> Iterator[Stream]:
    """What is left of each chunk after the last block (before the final norm), as the chunks come.

    masks: filled with what each stage that drops tokens keeps of those that reach it, `[V]` bool on the host."""
    left = _schedule(decoder, vision)
    stream = counted(decoder, chunks, left[0], state)
    return through(decoder, stream, left, state.segments, range(len(decoder.segments)), {}, masks)


def through(
    decoder: Decoder,
    stream: Iterator[Stream],
    left: list[list[int]],
    states: Sequence[SegmentState],
    numbers: range,
    dropped: dict[int, DroppedTokens],
    masks: dict[str, Tensor] | None = None,
) -> Iterator[Stream]:
    """What the segments of these numbers leave of each chunk, as it comes out of the one before. left: vision tokens
    that reach each segment, by group; dropped: filled with what each stage takes out; masks: as in
    `stream_through`."""
    masks = {} if masks is None else masks
    # Generators around generators: a chunk is read only when what it leaves is asked for.
    for i in numbers:
        segment = decoder.segments[i]
        if i and left[i] != left[i - 1]:
            stage = DroppedTokens(sum(left[i - 1]) - (0 if decoder.transv_cfg.keys == "all" else sum(left[i])))
            dropped[i] = stage
            stream = _choose(decoder, segment, stream, left[i - 1], left[i], stage, masks)
        stream = _run(decoder, segment, stream, states[i])
    return stream


def kept_bytes(decoder: Decoder, vision: int | Sequence[int], text_count: int) -> int:
    """The part of the peak memory of `prefill_chunks` that grows with the prompt (formula above)."""
    cfg, e = decoder.cfg, decoder.embeddings.weight.element_size()
    pair = 2 * cfg.kv_heads * cfg.head_dim * e
    left = [sum(n) for n in _schedule(decoder, vision)]
    total = 0
    for i, segment in enumerate(decoder.segments):
        blocks = sum(cfg.layout[b] == "*" for b in segment.blocks)
        total += blocks * (left[i] + text_count) * pair
        if i and left[i] < left[i - 1] and segment.stage is not None:
            if segment.name in decoder.transv:
                every = decoder.transv_cfg.keys == "all"
                total += (left[i - 1] - (0 if every else left[i])) * pair
            if isinstance(selection := SELECTIONS[segment.stage.select], ByScore):
                total += (left[i - 1] + text_count) * (cfg.width * e + selection.bytes_per_token(cfg, segment.stage))
    return total


def _schedule(decoder: Decoder, vision: int | Sequence[int]) -> list[list[int]]:
    """The vision tokens of each group that reach each segment."""
    return schedule(decoder.segments, [vision] if isinstance(vision, int) else vision)


def counted(
    decoder: Decoder, chunks: Iterable[tuple[Tensor, Tensor]], groups: list[int], state: DecoderState
) -> Iterator[Stream]:
    """The chunks as streams, their tokens counted; what they add up to is checked."""
    vision, cuts = 0, set[int]()
    for x, kind in chunks:
        bounds = Bounds([len(x)], x.device)
        decoder.check_lengths(bounds, state)
        runs = text_runs(kind, bounds.lengths)
        cuts |= {vision + seen for _, kind_of, seen in runs[0] if kind_of == Kind.ANSWER}
        count = len(kind) - sum(n for n, *_ in runs[0])
        vision += count
        if vision > sum(groups):
            break  # too many already: the rest could be an hour of video
        index = torch.arange(len(x), device=x.device) + state.seen[0]
        state.seen = [state.seen[0] + len(x)]
        yield Stream(x, bounds, kind, [[count]], index, runs)
    found = parted(cuts, vision)
    if found != groups:
        more = "or more " if vision > sum(groups) else ""
        raise ValueError(
            f"the chunks hold {_listed(found)} {more}vision tokens, but `vision` says {_listed(groups)}: TransV's "
            "schedule counts from it, so it must be exact (frames times tokens a frame, parted where answers part them)"
        )


def _listed(groups: list[int]) -> str:
    return " + ".join(f"{n:,}" for n in groups)


def _run(decoder: Decoder, segment: Segment, stream: Iterator[Stream], state: SegmentState) -> Iterator[Stream]:
    for chunk in stream:
        if len(chunk.x):  # a stage may leave nothing of a chunk
            chunk.x = decoder.run(segment, chunk.x, chunk.bounds, state)
        yield chunk


def _choose(
    decoder: Decoder,
    segment: Segment,
    stream: Iterator[Stream],
    left: list[int],
    kept: list[int],
    memory: DroppedTokens,
    masks: dict[str, Tensor],
) -> Iterator[Stream]:
    """What a stage leaves of each chunk: `kept` of the `left` vision tokens of each group of the prompt; which, it
    writes into `masks`."""
    assert segment.stage is not None
    selection = SELECTIONS[segment.stage.select]
    if isinstance(selection, ByCount):
        mask = selection.mask(left, kept, torch.device("cpu"))
    else:
        held = deque(stream)
        view = decoder.view(held, segment.blocks.start, [left], segment.stage.query)
        mask = selection.choose(view, kept).cpu()
        stream = (held.popleft() for _ in range(len(held)))  # a chunk that has gone on is held no longer
    masks[segment.name] = mask
    yield from _shorten(decoder, segment, stream, mask, memory)


def _shorten(
    decoder: Decoder, segment: Segment, stream: Iterator[Stream], mask: Tensor, memory: DroppedTokens
) -> Iterator[Stream]:
    """Let each chunk lose the vision tokens that `mask [left]` does not keep."""
    options = decoder.transv_cfg
    start = 0
    for chunk in stream:
        part = mask[start : start + chunk.num_vision]
        start += chunk.num_vision
        transfer = decoder.transfer_of(segment)
        yield shorten(chunk, part.to(chunk.x.device), [[int(part.sum())]], transfer, options, memory)

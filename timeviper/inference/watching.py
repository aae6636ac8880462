"""A prompt's video through the decoder once, up to where the question comes in, and questions from there on.

What comes out equals one prefill of video and question: the same blocks see the same tokens in the same order, only cut
into other pieces.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from timeviper.inference.prefill import Prefilled, counted, left_by, through
from timeviper.kernels.bounds import Bounds
from timeviper.model.boundary import Boundary, question_cut, schedule
from timeviper.model.decoder import Decoder
from timeviper.model.state import DecoderState, SegmentState
from timeviper.model.transv import DroppedTokens, Stream, shorten
from timeviper.pack import Kind, text_runs


@torch.inference_mode()
def watch_prompt(
    decoder: Decoder, chunks: Iterable[tuple[Tensor, Tensor]], vision: int, text: int
) -> Generator[int, None, Boundary]:
    """Read a prompt that ends with its last vision token, as `prefill_chunks` does, up to the boundary, which is
    returned; yields after each chunk how many tokens have been seen. text: its tokens of text, for the room.

    Raises ValueError when the chunks hold other vision tokens, or are longer than the context.
    """
    left = schedule(decoder.segments, [vision])
    cut = question_cut(decoder.segments, left)
    weight = decoder.embeddings.weight
    room = [[sum(n) + text if i < cut else 0] for i, n in enumerate(left)]
    state = decoder.empty_state(1, weight.device, weight.dtype, room)
    dropped: dict[int, DroppedTokens] = {}
    held: list[Stream] = []
    stream = counted(decoder, chunks, left[0], state)
    for chunk in through(decoder, stream, left, state.segments, range(cut), dropped):
        if cut < len(decoder.segments):
            held.append(chunk)
        yield state.seen[0]
    return gathered(decoder, state.segments[:cut], held, vision, state.seen[0], dropped)


def gathered(
    decoder: Decoder,
    segments: list[SegmentState],
    held: list[Stream],
    vision: int,
    seen: int,
    dropped: dict[int, DroppedTokens],
) -> Boundary:
    """A boundary from what waits at the cut, whose pieces are let go one by one."""
    count = sum(len(piece.x) for piece in held)
    x = decoder.embeddings.weight.new_empty(count, decoder.cfg.width)
    kind, index = torch.empty(count, dtype=torch.uint8), torch.empty(count, dtype=torch.int32)
    start = 0
    for n in range(len(held)):
        piece, held[n] = held[n], held[-1]  # never all of it twice
        rows = slice(start, start + len(piece.x))
        x[rows], kind[rows], index[rows] = piece.x, piece.kind.cpu(), piece.index.cpu().int()
        start = rows.stop
    return Boundary(segments, x, kind, index, vision, seen, dropped)


@torch.inference_mode()
def go_on(decoder: Decoder, boundary: Boundary, ids: Tensor, kind: Tensor, more: int, size: int) -> Prefilled:
    """The rest of a prompt, its text after the video: ids and kind `[n]`. `boundary` stays as it is, for the next one.

    more: tokens to be written, for which room is made; size: tokens that go through the decoder at a time, those that
    wait among them (0: all).
    Raises ValueError for no text, for vision tokens in it, or where it is longer than the context.
    """
    weight = decoder.embeddings.weight
    if len(ids) == 0 or bool((kind == Kind.VISION).any()):
        raise ValueError("a prompt goes on from a video's state with text: at least one token, none of them vision")
    decoder.check_lengths(Bounds([len(ids)]), DecoderState([], weight.device, [boundary.seen]))
    size = size or boundary.seen + len(ids)
    left = schedule(decoder.segments, [boundary.vision])
    states = _states(decoder, boundary, left, len(ids) + more)
    boundary = boundary.to(weight.device)  # what is on the host goes there for this question alone
    text, masks = iter(_text(decoder, boundary, ids, kind, size)), dict[str, Tensor]()
    stream = (_follow(decoder, boundary, states, chunk) for chunk in text)
    if boundary.cut < len(decoder.segments):
        stream = _after(boundary.waiting(size), stream)
        stream = through(decoder, stream, left, states, range(boundary.cut, len(states)), {}, masks)
    last = None
    for chunk in stream:
        last = chunk.x[-1:] if len(chunk.x) else last
    assert last is not None
    state = DecoderState(states, weight.device, [boundary.seen + len(ids)])
    kept = {segment.name: [sum(n)] for segment, n in zip(decoder.segments[1:], left[1:])}
    return Prefilled(decoder.norm_f(last), state, kept, left_by(decoder, left, masks))


@torch.inference_mode()
def advance(decoder: Decoder, boundary: Boundary, size: int) -> Boundary:
    """A boundary that was cut early, of a video that has ended, up to where the question comes in."""
    left = schedule(decoder.segments, [boundary.vision])
    cut = question_cut(decoder.segments, left)
    if cut <= boundary.cut:
        return boundary
    weight = decoder.embeddings.weight
    states = _states(decoder, boundary, left, 0)
    dropped = dict(boundary.dropped)
    stream = iter(boundary.to(weight.device).waiting(size or boundary.seen))
    held = list(through(decoder, stream, left, states, range(boundary.cut, cut), dropped))
    held = held if cut < len(decoder.segments) else []
    return gathered(decoder, states[:cut], held, boundary.vision, boundary.seen, dropped)


def _states(decoder: Decoder, boundary: Boundary, left: list[list[int]], more: int) -> list[SegmentState]:
    """Copies of the boundary's states, and empty ones behind it, with room for `more` tokens of text."""
    weight, cut = decoder.embeddings.weight, boundary.cut
    room = [[0] if i < cut else [sum(n) + boundary.text + more] for i, n in enumerate(left)]
    empty = decoder.empty_state(1, weight.device, weight.dtype, room).segments
    return [*(segment.copy(more, weight.device) for segment in boundary.segments), *empty[cut:]]


def _text(decoder: Decoder, boundary: Boundary, ids: Tensor, kind: Tensor, size: int) -> Iterator[Stream]:
    start = boundary.seen
    for part, kinds in zip(ids.split(size), kind.split(size)):
        x = decoder.embed(part.to(decoder.embeddings.weight.device))
        index = torch.arange(start, start + len(part), device=x.device)
        start += len(part)
        yield Stream(x, Bounds([len(part)], x.device), kinds.to(x.device), [[0]], index, text_runs(kinds, [len(part)]))


def _follow(decoder: Decoder, boundary: Boundary, states: list[SegmentState], chunk: Stream) -> Stream:
    """Text through the segments before the cut: it receives what they took out, and loses nothing."""
    chunk = replace(chunk)
    for i, segment in enumerate(decoder.segments[: boundary.cut]):
        transfer = decoder.transfer_of(segment)
        if i in boundary.dropped and transfer is not None:
            nothing = torch.zeros(0, dtype=torch.bool, device=chunk.x.device)
            chunk = shorten(chunk, nothing, [[0]], transfer, decoder.transv_cfg, boundary.dropped[i])
        chunk.x = decoder.run(segment, chunk.x, chunk.bounds, states[i])
    return chunk


def _after(waiting: list[Stream], text: Iterator[Stream]) -> Iterator[Stream]:
    yield from waiting
    yield from text

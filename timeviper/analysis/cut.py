"""Cut an edge between tokens in any mixer: some rows are computed as if some tokens had never been there.

    y = mixer(h),  y[rows] = mixer(h[not hide])[rows],  boundaries and positions those of the shorter stream

So the same rule cuts attention, the Mamba-2 scan and its convolution, on packs and with text between the frames. What
is hidden neither writes into the state nor lets it decay, and a softmax is over what is left. Cut in all mixers, the
rows are those of a run without the hidden tokens: but for rounding, and with `exact` bit for bit. Leaving out the
convolution would cut nothing: its first rows carry what they saw into the state.

Letters: L tokens of the stream that enters the decoder, l of the stream that a mixer sees, D width, n rows of text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from timeviper.config.shape import Segment
from timeviper.errors import one_of
from timeviper.kernels.bounds import Bounds
from timeviper.model.attention import Attention
from timeviper.model.decoder import Decoder
from timeviper.model.hooks import hooked
from timeviper.model.mamba2 import Mamba2
from timeviper.model.state import Span
from timeviper.model.transv import Stream
from timeviper.pack import Kind

MIXERS = "M*"  # letters of the blocks where tokens meet


def cut(
    mixer: nn.Module,
    h: Tensor,
    bounds: Bounds,
    hide: Tensor,
    rows: Tensor,
    *,
    y: Tensor | None = None,
    span_of: Callable[[Bounds], Span] = Span.fresh,
) -> Tensor:
    """What a mixer makes of whole sequences, `[l, D]`, when the tokens at `rows` do not know those at `hide`.

    mixer: of a block: attention, Mamba-2 or MLP. h `[l, D]`: its input, behind the norm. hide, rows `[l]` bool, which
    share no token. y `[l, D]`: what it makes of `h`, if that is known already. span_of: the span of shorter sequences
    (a decoder's, where positions count).
    Costs the mixer a second pass over the sequences that hold a hidden token, without these tokens.
    ValueError if a token is to know nothing of itself.
    """
    if bool((hide & rows).any()):
        raise ValueError("a token cannot be computed without itself: `hide` and `rows` must not share any")
    if y is None:
        y = _forward(mixer, h, bounds, span_of)
    S = bounds.num_sequences
    touched = torch.zeros(S, dtype=torch.bool, device=h.device).index_fill(0, bounds.seq_idx[hide], True)
    stay = ~hide & touched[bounds.seq_idx]  # [l]
    if not bool((stay & rows).any()):
        return y
    lengths = torch.zeros(S, dtype=torch.int64, device=h.device).index_add(0, bounds.seq_idx, stay.long()).tolist()
    shorter = Bounds([n for n in lengths if n], h.device)
    again = _forward(mixer, h[stay], shorter, span_of)[rows[stay]]
    return y.index_copy(0, (stay & rows).nonzero().squeeze(1), again)


def _forward(mixer: nn.Module, h: Tensor, bounds: Bounds, span_of: Callable[[Bounds], Span]) -> Tensor:
    """The mixer's `forward`, not a call of it: `cut` may be its hook."""
    return mixer.forward(h, span_of(bounds)) if isinstance(mixer, (Attention, Mamba2)) else mixer.forward(h)


@contextmanager
def cutting(
    decoder: Decoder,
    hide: Tensor,
    rows: Tensor,
    blocks: Collection[int] | None = None,
    transfers: Collection[str] = (),
    *,
    exact: bool = False,
) -> Iterator[None]:
    """Within it the tokens at `rows` of the stream that enters the decoder do not know those at `hide`.

    hide, rows: `[L]` bool of the next pack; behind a TransV stage those tokens are meant that are left of them. blocks:
    in which of them; None: in all that mix tokens. Others, MLPs too, do what they always do. transfers: TransV stages
    (by name, of those that have weights) that hand nothing to the tokens at `rows`, whatever they drop. exact: MLPs
    take the rows apart, too, which changes rounding alone: products of as many rows as in a run without the hidden.

    Vision tokens behind rows that are cut (text between frames) see these rows as they now are, and a stage that ranks
    is asked by tokens that may be cut: it can choose others. Where two of these hold, a row that both cut in a block
    is as the inner says. For whole sequences without a state,
    as in training; ValueError for a block that is not a mixer, an unknown stage, or a state.
    """
    layout = decoder.cfg.layout
    chosen = mixers(layout) if blocks is None else [*blocks]
    _check(decoder, chosen, transfers)
    here: list[Stream] = []

    def watch(_: Segment, stream: Stream) -> None:
        here[:] = [stream]

    def span_of(bounds: Bounds) -> Span:
        return decoder.with_rope(Span.fresh(bounds))

    def mix(mixer: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        h, rest = args[0], args[2:]
        if any(state is not None for state in rest):
            raise ValueError("an edge is cut in whole sequences, without a state of earlier tokens")
        (stream,) = here
        return cut(mixer, h, stream.bounds, hide[stream.index], rows[stream.index], y=y, span_of=span_of)

    def transfer(_: nn.Module, args: tuple[Any, ...], delta: Tensor) -> Tensor:
        # The receivers [n] are the text of the stream, all of it.
        (before,) = here
        return delta.masked_fill(rows[before.index[before.kind != Kind.VISION]][:, None], 0)

    chosen += [i for i, letter in enumerate(layout) if letter == "-" and exact]
    hooks = [decoder.blocks[block].mixer.register_forward_hook(mix) for block in chosen]  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    hooks += [decoder.transv[name].register_forward_hook(transfer) for name in transfers]
    with hooked(hooks), decoder.watched(watch):
        yield


def mixers(layout: str) -> list[int]:
    """Blocks of a layout where tokens meet, by number."""
    return [i for i, letter in enumerate(layout) if letter in MIXERS]


def _check(decoder: Decoder, blocks: Collection[int], transfers: Collection[str]) -> None:
    layout, there = decoder.cfg.layout, mixers(decoder.cfg.layout)
    for block in blocks:
        if block not in there:
            what = f"is an MLP ({layout})" if 0 <= block < len(layout) else f"is none of 0 to {len(layout) - 1}"
            raise ValueError(f"block {block} {what}: tokens meet in the blocks {', '.join(map(str, there))}")
    for name in transfers:
        if name not in decoder.transv:
            known = one_of(decoder.transv) if len(decoder.transv) else "none"
            raise ValueError(f"no TransV stage {name} hands anything on: those that do are {known}")

"""Sees a prompt go through a decoder twice, and says what its query rows read of which bucket, in every block.

The first pass is the answer itself, whole or in pieces: of each block the last tokens' queries stay (C and the running
decay of Mamba-2, q of attention). In the second, the same calls again, the tokens of each piece are added to sums
`[K, H, F]` and forgotten; attention blocks, whose keys the state holds, need no sums on the way. Exact, since states
repeat bit for bit. What is kept beside the prefill, of K rows and F buckets, e bytes an element (`look_bytes`):

    each Mamba-2 block        K H F e                        sums
                              2 rows (G N e + 8 H)           queries of the last tokens, twice while one is added
                              4 rows H P e                   with relevance: what the gated norm took, likewise
    each attention block      2 rows (2 H P e)
    one block at a time       a few times BLOCK * 8

Only one sequence is watched at a time. Letters as in `hidden.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from timeviper.analysis.hidden import Asked, Queries, add_attention, add_rows
from timeviper.analysis.relevance import MambaRelevance, Relevance, attention_relevance, scanned_of
from timeviper.model.attention import Attention
from timeviper.model.decoder import Block, Decoder
from timeviper.model.hooks import hooked
from timeviper.model.mamba2 import Mamba2
from timeviper.model.state import AttentionState, DecoderState


@dataclass
class Tail:
    """The last tokens of one block, at most `room` of them."""

    room: int
    seen: int = 0
    """Tokens that have passed."""
    sums: Tensor | None = None
    """`[H]` float64 of a scan: of all log decays so far."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """By name, of the last tokens, `[rows, ...]`."""

    def begin(self) -> None:
        self.seen, self.sums, self.rows = 0, None, {}

    def keep(self, **rows: Tensor) -> None:
        for name, new in rows.items():
            old = self.rows.get(name)
            new = new[-self.room :]
            self.rows[name] = new.clone() if old is None else torch.cat([old, new])[-self.room :]

    def last(self, name: str, numbers: Sequence[int]) -> Tensor:
        """Rows of the tokens with these numbers, counted from the block's first."""
        first = self.seen - len(self.rows[name])
        return self.rows[name][[n - first for n in numbers]]


@contextmanager
def watch_tails(decoder: Decoder, blocks: Sequence[int], room: int, outputs: bool) -> Iterator[dict[int, Tail]]:
    """The first pass: fills a tail for each of the blocks. outputs: keep what relevance needs, too."""
    tails = {block: Tail(room) for block in blocks}
    hooks = []

    def scan(tail: Tail, mixer: Mamba2) -> Any:
        def see(_: Any, args: tuple[Any, ...]) -> None:
            if args[4].past is None:  # the first tokens, perhaps of another attempt at the same prompt
                tail.begin()
            tokens = scanned_of(mixer, args, tail.sums)
            tail.seen, tail.sums = tail.seen + len(tokens.x), tokens.sums[-1].clone()
            tail.keep(C=tokens.C, sums=tokens.sums)

        return see

    def attend(tail: Tail, mixer: Attention) -> Any:
        def see(_: Any, args: tuple[Any, ...]) -> None:
            x, span = args[:2]
            if span.past is None:
                tail.begin()
            tail.seen += len(x)
            rope = None if span.rope is None else (span.rope[0][-tail.room :], span.rope[1][-tail.room :])
            tail.keep(q=mixer.query(x[-tail.room :], rope))

        return see

    for block, tail in tails.items():
        mixer = cast(Block, decoder.blocks[block]).mixer
        if isinstance(mixer, Mamba2):
            hooks.append(mixer.ssm.register_forward_pre_hook(scan(tail, mixer)))
            if outputs:
                see = lambda _, args, tail=tail: tail.keep(y=args[0], z=args[1])  # noqa: E731
                hooks.append(mixer.norm.register_forward_pre_hook(see))
        elif isinstance(mixer, Attention):
            hooks.append(mixer.register_forward_pre_hook(attend(tail, mixer)))
            if outputs:
                hooks.append(mixer.register_forward_hook(lambda _, __, out, tail=tail: tail.keep(out=out)))
    with hooked(hooks):
        yield tails


@dataclass
class Seen:
    """What K rows of one block read of each bucket."""

    block: int
    kind: str
    """`mamba` or `attention`."""
    mass: Tensor
    """`[K, H, F]`: sizes of the entries times what they weigh (`hidden.Measure`)."""
    rates: Tensor | None = None
    """`[H]`: of a scan, how much a token forgets, mean over all."""
    relevance: Relevance | None = None


class Sums:
    """The second pass over one block."""

    def __init__(
        self, number: int, block: Block, tail: Tail, rows: Sequence[int], bucket: Tensor, buckets: int, exact: bool
    ) -> None:
        """rows: numbers of the query tokens in this block's stream; bucket `[l]` of its tokens. exact: relevance."""
        self.number, self.mixer, self.bucket, self.buckets, self.seen = number, block.mixer, bucket, buckets, 0
        self.before: Tensor | None = None
        self.inputs: tuple[Tensor, Tensor] | None = None
        self.relevance: MambaRelevance | None = None
        place = torch.tensor(rows, device=bucket.device)
        if isinstance(self.mixer, Attention):
            self.asked = Asked(tail.last("q", rows), place)
            self.out = tail.last("out", rows) if exact else None
            return
        assert isinstance(self.mixer, Mamba2)
        assert tail.sums is not None
        C, sums = tail.last("C", rows), tail.last("sums", rows)
        self.queries = Queries(C, sums, place, torch.zeros_like(place))
        self.rates = -tail.sums / max(tail.seen, 1)
        self.mass = C.new_zeros(len(rows), self.mixer.heads, buckets, dtype=torch.promote_types(C.dtype, torch.float32))
        self.about = (tail.last("y", rows), tail.last("z", rows)) if exact else None
        self._begin()

    def _begin(self) -> None:
        self.seen, self.before = 0, None
        self.mass.zero_()
        if self.about is not None:
            self.relevance = MambaRelevance(cast(Mamba2, self.mixer), self.queries, *self.about, self.buckets)

    def hooks(self) -> list[Any]:
        if not isinstance(self.mixer, Mamba2):
            return []
        found = [self.mixer.ssm.register_forward_pre_hook(self._scan)]
        if self.about is not None:
            found.append(self.mixer.conv.register_forward_pre_hook(self._conv))
        return found

    def _conv(self, _: Any, args: tuple[Any, ...]) -> None:
        x, _, state = args
        inner = cast(Mamba2, self.mixer).inner
        self.inputs = x[:, :inner], state[0, :inner].T.clone()

    def _scan(self, _: Any, args: tuple[Any, ...]) -> None:
        if args[4].past is None:
            self._begin()
        mixer = cast(Mamba2, self.mixer)
        tokens, start = scanned_of(mixer, args, self.before), self.seen
        self.before, self.seen = tokens.sums[-1].clone(), start + len(tokens.x)
        add_rows(self.mass, self.queries, tokens, self.bucket[start : self.seen], start)
        if self.relevance is not None:
            assert self.inputs is not None
            x, before = self.inputs
            reach = torch.arange(start - len(before), self.seen, device=x.device).clamp(min=0)
            self.relevance.add(tokens, torch.cat([before, x]), self.bucket[reach], start)

    def result(self, state: AttentionState | Any) -> Seen:
        """state: the block's, behind the last token."""
        if isinstance(self.mixer, Mamba2):
            found = None if self.relevance is None else self.relevance.found
            return Seen(self.number, "mamba", self.mass, self.rates, found)
        n, mixer = len(self.bucket), cast(Attention, self.mixer)
        k, v = state.keys[:n], state.values[:n]
        wide = torch.promote_types(k.dtype, torch.float32)
        mass = torch.zeros(len(self.asked.q), self.asked.q.shape[1], self.buckets, dtype=wide, device=k.device)
        add_attention(mass, self.asked, k, v, self.bucket)
        found = None
        if self.out is not None:
            found = attention_relevance(mixer, self.asked, self.out, k, v, self.bucket, self.buckets)
        return Seen(self.number, "attention", mass, None, found)


@contextmanager
def watch_sums(sums: Sequence[Sums]) -> Iterator[None]:
    """The second pass."""
    with hooked([hook for one in sums for hook in one.hooks()]):
        yield


def results(decoder: Decoder, sums: Sequence[Sums], state: DecoderState) -> list[Seen]:
    """After the second pass has left `state`."""
    states = {
        block: held
        for segment, there in zip(decoder.segments, state.segments)
        for block, held in zip(segment.blocks, there.blocks)
    }
    return [one.result(states[one.number]) for one in sums]


def look_bytes(decoder: Decoder, blocks: Sequence[int], rows: int, room: int, buckets: int, exact: bool) -> int:
    """What a look holds beside the prefill (formula above), K of `room` last tokens being asked."""
    cfg, e = decoder.cfg, decoder.embeddings.weight.element_size()
    wide, total = max(e, 4), 0
    for block in blocks:
        if cfg.layout[block] == "M":
            total += rows * cfg.ssm_heads * buckets * wide + 2 * room * (
                cfg.ssm_groups * cfg.ssm_state * e + 8 * cfg.ssm_heads
            )
            total += 4 * room * cfg.ssm_heads * cfg.ssm_head_dim * e if exact else 0
        else:
            total += 2 * room * cfg.heads * cfg.head_dim * e * (2 if exact else 1)
    return total

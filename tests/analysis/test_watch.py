"""Two passes through a decoder, in pieces and behind TransV stages, against dense matrices of one whole pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest
import torch
from model_helpers import HYBRID, PLAIN, PLAIN_GUIDED, PUBLISHED, Prompt, make_decoder, make_prompts
from torch import Tensor
from torch.testing import assert_close

from timeviper.analysis.cut import mixers
from timeviper.analysis.hidden import Asked, attention_rows, rows
from timeviper.analysis.relevance import scanned_of
from timeviper.analysis.watch import Seen, Sums, results, watch_sums, watch_tails
from timeviper.inference.prefill import Prefilled, prefill, prefill_chunks
from timeviper.kernels.bounds import Bounds
from timeviper.model.attention import Attention
from timeviper.model.decoder import Block, Decoder
from timeviper.model.mamba2 import Mamba2
from timeviper.pack import Kind

ANSWER, BUCKETS = 5, 11
CASES = {"hybrid": (HYBRID, PUBLISHED), "no stage": (HYBRID, {}), "transformer": (PLAIN, PLAIN_GUIDED)}


def prompt_of(pattern: str, width: int) -> tuple[Prompt, Tensor]:
    """It and the embedded tokens of an answer."""
    (prompt,) = make_prompts([pattern], width)
    return prompt, torch.randn(ANSWER, width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def read(decoder: Decoder, prompt: Prompt, answer: Tensor, size: int) -> Prefilled:
    """Prompt, in pieces or whole (0), then the answer token by token."""
    if size:
        parts = zip(prompt.x.split(size), prompt.kind.split(size))
        start = prefill_chunks(decoder, parts, prompt.vision, len(prompt.x) - prompt.vision + ANSWER)
    else:
        start = prefill(decoder, prompt.x, Bounds([len(prompt.x)]), prompt.kind)
    with torch.inference_mode():
        for row in answer.split(1):
            decoder(row, Bounds([1]), state=start.state)
    return start


def looked_at(
    decoder: Decoder, prompt: Prompt, answer: Tensor, size: int, exact: bool
) -> tuple[list[Seen], list[Tensor]]:
    """What the last prompt token and the answer read of buckets, and each block's stream."""
    blocks, length = mixers(decoder.cfg.layout), len(prompt.x)
    with watch_tails(decoder, blocks, ANSWER + 3, exact) as tails:
        start = read(decoder, prompt, answer, size)
    places, kept = torch.nonzero(prompt.kind == Kind.VISION).squeeze(1), {"": torch.arange(prompt.vision)}
    kept |= {name: which for name, (which,) in start.survivors.items()}
    sums, streams = [], []
    for block in blocks:
        segment = next(s for s in decoder.segments if block in s.blocks)
        stays = prompt.kind != Kind.VISION
        stays[places[kept[segment.name]]] = True
        stream = torch.cat([torch.nonzero(stays).squeeze(1), torch.arange(length, length + ANSWER)])
        asked = [len(stream) - 1 - n for n in range(ANSWER, -1, -1)]
        sums.append(
            Sums(block, cast(Block, decoder.blocks[block]), tails[block], asked, stream % BUCKETS, BUCKETS, exact)
        )
        streams.append(stream)
    with watch_sums(sums):
        start = read(decoder, prompt, answer, size)
    return results(decoder, sums, start.state), streams


@contextmanager
def dense_rows(decoder: Decoder) -> Iterator[dict[int, Tensor]]:
    """Rows `[K, H, l]` times the sizes of what they weigh, of the last ANSWER + 1 tokens of one whole pass."""
    found: dict[int, Tensor] = {}

    def scan(block: int, mixer: Mamba2):
        def see(_, args) -> None:
            tokens = scanned_of(mixer, args)
            places = torch.arange(len(tokens.x) - ANSWER - 1, len(tokens.x))
            found[block] = rows(tokens.queries(places), tokens).abs() * tokens.x.norm(dim=-1).T

        return see

    def attend(block: int, mixer: Attention):
        def see(_, args) -> None:
            x, span = args[:2]
            k, v = mixer.look_at(x, span.rope)
            q, places = mixer.query(x, span.rope), torch.arange(len(x) - ANSWER - 1, len(x))
            sizes = v.norm(dim=-1).repeat_interleave(q.shape[1] // k.shape[1], 1)
            found[block] = attention_rows(Asked(q[places], places), k) * sizes.T

        return see

    hooks = []
    for block in mixers(decoder.cfg.layout):
        mixer = cast(Block, decoder.blocks[block]).mixer
        if isinstance(mixer, Mamba2):
            hooks.append(mixer.ssm.register_forward_pre_hook(scan(block, mixer)))
        elif isinstance(mixer, Attention):
            hooks.append(mixer.register_forward_pre_hook(attend(block, mixer)))
    yield found
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("size", [0, 7, 100])
@pytest.mark.parametrize("case", CASES)
def test_streamed_sums_equal_dense_rows_at_512_tokens(case: str, size: int) -> None:
    cfg, stages = CASES[case]
    decoder = make_decoder(cfg, stages).eval()
    prompt, answer = prompt_of("2c200v3i250v57i", cfg.width)
    assert len(prompt.x) == 512
    seen, streams = looked_at(decoder, prompt, answer, size, exact=False)
    whole = torch.cat([prompt.x, answer])
    kind = torch.cat([prompt.kind, torch.full((ANSWER,), Kind.ANSWER, dtype=torch.uint8)])
    with dense_rows(decoder) as found, torch.inference_mode():
        decoder(whole, Bounds([len(whole)]), kind)
    for one, stream in zip(seen, streams):
        want = found[one.block]
        want = torch.zeros(*want.shape[:2], BUCKETS, dtype=torch.float64).index_add_(2, stream % BUCKETS, want)
        assert_close(one.mass, want, rtol=0, atol=1e-10 * float(want.max()))


@pytest.mark.parametrize("size", [0, 50])
def test_streamed_relevance_adds_up_to_what_each_block_writes(size: int) -> None:
    decoder = make_decoder(HYBRID, PUBLISHED).eval()
    prompt, answer = prompt_of("2c100v3i100v20i", HYBRID.width)
    seen, _ = looked_at(decoder, prompt, answer, size, exact=True)
    whole, _ = looked_at(decoder, prompt, answer, 0, exact=True)
    for one, other in zip(seen, whole):
        assert one.relevance is not None
        assert other.relevance is not None
        assert one.relevance.missing < 1e-9
        assert one.relevance.target > 0
        assert_close(one.relevance.parts, other.relevance.parts, rtol=0, atol=1e-10 * other.relevance.target)
        if one.kind == "mamba":
            assert abs(one.relevance.bias) > 1e-6 * one.relevance.target


def test_a_prompt_that_begins_again_is_counted_once() -> None:
    """As when a damaged file's frames turn out to be others: what the first attempt left is forgotten."""
    decoder = make_decoder(HYBRID, PUBLISHED).eval()
    prompt, answer = prompt_of("2c60v9i", HYBRID.width)
    once, _ = looked_at(decoder, prompt, answer, 16, exact=True)

    def attempt(size: int) -> None:
        try:
            prefill_chunks(decoder, broken(), prompt.vision, 20)
        except RuntimeError:
            return

    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        yield prompt.x[:16], prompt.kind[:16]
        raise RuntimeError

    blocks = mixers(decoder.cfg.layout)
    with watch_tails(decoder, blocks, ANSWER + 3, True) as tails:
        attempt(16)
        read(decoder, prompt, answer, 16)
    again, _ = looked_at(decoder, prompt, answer, 16, exact=True)
    assert tails[blocks[0]].seen == len(prompt.x) + ANSWER
    assert all(torch.equal(a.mass, b.mass) for a, b in zip(once, again))

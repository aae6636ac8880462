"""Which vision tokens survive each stage: of packs and of prompts in pieces the same, and those in the stream."""

from __future__ import annotations

import pytest
import torch
from model_helpers import HYBRID, SCHEDULES, make_decoder, make_prompts

from timeviper.inference.prefill import Prefilled, prefill, prefill_chunks
from timeviper.kernels.bounds import Bounds
from timeviper.model.decoder import Decoder
from timeviper.model.transv import Stream
from timeviper.pack import Kind

PROMPTS = ("2c19v4i", "5c", "1c30v5i", "1v1i", "12v3i7v4i")


@pytest.mark.parametrize("schedule", ["off", "uniform", "published", "question", "mamba"])
def test_packs_and_pieces_name_the_same_survivors(schedule: str) -> None:
    cfg, stages = SCHEDULES[schedule]
    assert cfg == HYBRID
    decoder = make_decoder(cfg, stages).eval()
    prompts = make_prompts(PROMPTS)
    x, kind = (torch.cat([getattr(p, name) for p in prompts]) for name in ("x", "kind"))
    streams: list[Stream] = []
    with decoder.watched(lambda _, stream: streams.append(stream)):
        whole = prefill(decoder, x, Bounds(len(p.kind) for p in prompts), kind)
    assert list(whole.survivors) == list(stages)
    for name, stream in zip(whole.survivors, streams[1:]):
        assert [len(which) for which in whole.survivors[name]] == whole.kept[name]
        places = torch.cat(
            [torch.nonzero(p.kind == Kind.VISION).squeeze(1)[w] for p, w in zip(prompts, whole.survivors[name])]
        )
        starts = Bounds(len(p.kind) for p in prompts).cu_seqlens[:-1].long()
        index = stream.index[stream.kind == Kind.VISION]
        assert torch.equal(places + starts[torch.bucketize(index, starts, right=True) - 1], index)
    for number, prompt in enumerate(prompts):
        for size in (4, 1000):
            parts = zip(prompt.x.split(size), prompt.kind.split(size))
            pieces = prefill_chunks(decoder, parts, prompt.vision)
            if prompt.vision:
                assert_same(whole, pieces, number)


def assert_same(whole: Prefilled, pieces: Prefilled, number: int) -> None:
    for name, found in pieces.survivors.items():
        assert torch.equal(whole.survivors[name][number], found[0])


def test_joined_prompts_keep_theirs() -> None:
    decoder: Decoder = make_decoder(*SCHEDULES["uniform"])
    one, two = (prefill(decoder, p.x, Bounds([len(p.x)]), p.kind) for p in make_prompts(("2c8v1i", "1c4v1i")))
    joined = Prefilled.join([one, two])
    assert [w.tolist() for w in joined.survivors["early"]] == [
        one.survivors["early"][0].tolist(),
        two.survivors["early"][0].tolist(),
    ]

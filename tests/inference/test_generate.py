"""Writing: prefill whole or in pieces, decode in batches, sampling, stopping; memory of long prompts."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from model_helpers import HYBRID, PATTERNS, PLAIN, SCHEDULES, Prompt, kinds, make_decoder, make_prompts, run
from torch.testing import assert_close

from timeviper.config import DecoderConfig, ModelConfig, TowerConfig, TransVConfig, TransVStage
from timeviper.inference.generate import ENDED, embed_frames, generate, in_pieces, prefill_pack, sample, write
from timeviper.inference.prefill import Prefilled, kept_bytes, prefill, prefill_chunks, stream_through
from timeviper.kernels.bounds import Bounds
from timeviper.model.decoder import Decoder
from timeviper.model.viper import TimeViper
from timeviper.pack import Pack

CLOSE = dict(rtol=0, atol=1e-9)


def greedy_by_hand(decoder: Decoder, prompt: torch.Tensor, count: int) -> list[int]:
    """Without any state: the whole sequence through the decoder for every token."""
    ids = prompt.tolist()
    for _ in range(count):
        ids.append(int(decoder.logits(torch.tensor(ids))[-1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("cfg", [HYBRID, PLAIN], ids=["hybrid", "rope"])
@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_a_batch_writes_what_each_would_alone(cfg: DecoderConfig, chunk: int | None) -> None:
    decoder = make_decoder(cfg)
    prompts = [torch.randint(61, (n,)) for n in (5, 1, 17, 9)]
    expected = [greedy_by_hand(decoder, prompt, 6) for prompt in prompts]
    assert [ids.tolist() for ids in generate(decoder, prompts, 6, chunk=chunk)] == expected


@pytest.mark.parametrize("cfg", [HYBRID, PLAIN], ids=["hybrid", "rope"])
def test_stop_ids_end_a_sequence_and_not_its_neighbours(cfg: DecoderConfig) -> None:
    decoder = make_decoder(cfg, seed=5)
    prompts = [torch.randint(61, (n,)) for n in (4, 12, 7)]
    free = [ids.tolist() for ids in generate(decoder, prompts, 8)]
    stop = {free[0][2], free[1][5]}
    shown: list[list[int]] = []
    stopped = [ids.tolist() for ids in generate(decoder, prompts, 8, stop_ids=stop, on_token=shown.append)]
    for a, b in zip(stopped, free):
        assert a == b[: next((i for i, token in enumerate(b) if token in stop), 8)]
    columns = [[token for token in column if token != ENDED] for column in zip(*shown)]
    assert columns == stopped
    assert generate(decoder, prompts[:1], 8, stop_ids=[free[0][0]])[0].tolist() == []


def test_sampling() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]))
    assert sample(logits, 0.0).tolist() == [0, 3]
    rows = logits.repeat(4000, 1)
    draw = sample(rows, 1.0, 1.0, torch.Generator().manual_seed(0)).view(-1, 2)
    share = torch.stack([torch.bincount(column, minlength=4) / 4000 for column in draw.T])
    assert_close(share, logits.exp(), rtol=0, atol=0.03)
    nucleus = sample(rows, 1.0, 0.7, torch.Generator().manual_seed(0)).view(-1, 2)
    assert nucleus[:, 0].unique().tolist() == [0, 1]
    assert nucleus[:, 1].unique().tolist() == [2, 3]
    again = sample(rows, 1.0, 0.7, torch.Generator().manual_seed(0)).view(-1, 2)
    assert torch.equal(nucleus, again)
    assert sample(rows, 1.0, 1e-6, torch.Generator()).view(-1, 2).unique(dim=0).tolist() == [[0, 3]]
    assert sample(rows, 1e-3, 1.0, torch.Generator()).view(-1, 2).unique(dim=0).tolist() == [[0, 3]]


def test_own_generator_leaves_the_global_one_alone() -> None:
    decoder, prompt = make_decoder(HYBRID), [torch.arange(9)]
    before = torch.get_rng_state()
    runs = [
        generate(decoder, prompt, 12, temperature=1.5, generator=torch.Generator().manual_seed(seed))[0]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


# ---- prompts with vision tokens ---------------------------------------------------------------------------

LONG = "3c400v7i90v2i30v6i"


def pieces(prompt: Prompt, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(prompt.x.split(size), prompt.kind.split(size)))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("size", [1, 7, 255, 256, 257, 10_000])
def test_prefill_in_chunks_equals_the_whole(schedule: str, size: int) -> None:
    """Every surviving position, not only the last; and the states, by what is decoded from them."""
    cfg, stages = SCHEDULES[schedule]
    pattern = LONG if size > 1 else "2c40v3i9v3i"
    decoder, prompt = make_decoder(cfg, stages), make_prompts([pattern])[0]
    whole = run(decoder, [prompt])
    with torch.inference_mode():
        state = decoder.empty_state()
        parts = list(stream_through(decoder, pieces(prompt, size), prompt.vision, state))
        assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
        assert_close(decoder.norm_f(torch.cat([part.x for part in parts])), whole.hidden.detach(), **CLOSE)
    start = prefill_chunks(decoder, pieces(prompt, size), prompt.vision, len(prompt.x) - prompt.vision + 5)
    assert start.kept == whole.kept
    assert_close(start.hidden, whole.hidden[-1:].detach(), **CLOSE)
    after_whole = prefill(decoder, prompt.x, Bounds([len(prompt.x)]), prompt.kind)
    assert torch.equal(write(decoder, start, 5)[0], write(decoder, after_whole, 5)[0])


@pytest.mark.parametrize("options", [dict(keys="all"), dict(queries="instruction+answer"), dict(prenorm=False)])
def test_prefill_in_chunks_with_variants(options: dict) -> None:
    decoder = make_decoder(*SCHEDULES["published"], **options)
    prompt = make_prompts(["3c50v7i9a20v6i"])[0]
    whole = run(decoder, [prompt])
    start = prefill_chunks(decoder, pieces(prompt, 9), [50, 20])
    assert_close(start.hidden, whole.hidden[-1:].detach(), **CLOSE)
    with decoder.transfer(False):
        dropped = run(decoder, [prompt])
        start = prefill_chunks(decoder, pieces(prompt, 9), [50, 20])
    assert_close(start.hidden, dropped.hidden[-1:].detach(), **CLOSE)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_decode_after_transfer_equals_the_full_forward(schedule: str) -> None:
    """The answer teacher-forced in one pass, and written token by token after the prompt's prefill."""
    cfg, stages = SCHEDULES[schedule]
    decoder = make_decoder(cfg, stages)
    patterns = ["2c30v5i", "3c", "1c9v2i7v4i"]
    answers = torch.randint(61, (3, 6))
    prompts = make_prompts(patterns)
    full = [
        Prompt(torch.cat([p.x, decoder.embed(ids).detach()]), torch.cat([p.kind, kinds("6a")]))
        for p, ids in zip(prompts, answers)
    ]
    whole = run(decoder, full)
    expected = [h[-7:].detach() for h in whole.hidden.split(list(whole.bounds.lengths))]
    with torch.inference_mode():
        x, kind = (torch.cat([getattr(p, name) for p in prompts]) for name in ("x", "kind"))
        start = prefill(decoder, x, Bounds(len(p.kind) for p in prompts), kind)
        hidden = [start.hidden]
        for column in answers.T:
            hidden.append(decoder(decoder.embed(column), Bounds([1] * 3), state=start.state).hidden)
    for i, rows in enumerate(expected):
        assert_close(torch.stack([h[i] for h in hidden]), rows, **CLOSE)


def test_key_caches_have_the_lengths_of_the_schedule() -> None:
    decoder, prompts = make_decoder(*SCHEDULES["published"]), make_prompts(["2c40v3i", "1c10v2i"])
    x, kind = (torch.cat([getattr(p, name) for p in prompts]) for name in ("x", "kind"))
    start = prefill(decoder, x, Bounds([45, 13]), kind)
    assert [s.lengths for s in start.state.segments] == [[45, 13], [25, 8], [13, 5]]
    write(decoder, start, 4)
    assert [s.lengths for s in start.state.segments] == [[48, 16], [28, 11], [16, 8]]


def test_joined_prompts_write_what_each_would_alone() -> None:
    decoder, prompts = make_decoder(*SCHEDULES["published"]), make_prompts(PATTERNS[2:5])
    alone = [prefill_chunks(decoder, pieces(p, 6), p.vision) for p in prompts]
    expected = [write(decoder, start, 6)[0] for start in alone]
    fresh = [prefill_chunks(decoder, pieces(p, 6), p.vision) for p in prompts]
    for a, b in zip(write(decoder, Prefilled.join(fresh), 6), expected):
        assert torch.equal(a, b)


def test_kept_bytes_is_what_the_caches_hold() -> None:
    decoder = make_decoder(*SCHEDULES["published"])
    prompt = make_prompts(["5c200v9i"])[0]
    fixed = decoder.empty_state().num_bytes()
    start = prefill_chunks(decoder, pieces(prompt, 32), 200, 14)
    caches = start.state.num_bytes() - fixed
    pair = 2 * HYBRID.kv_heads * HYBRID.head_dim * 8
    assert caches == pair * ((100 + 14) + (40 + 14))
    dropped, held = pair * (100 + 60), (100 + 14) * (HYBRID.width * 8 + 16 * HYBRID.heads)
    assert kept_bytes(decoder, 200, 14) == caches + dropped + held


def viewer(stages: str = "published") -> TimeViper:
    torch.manual_seed(0)
    tower = TowerConfig("vit", "", 8, 4, 12, 1, 2, 24, 0, -1, 4)
    schedule = TransVConfig(stages=dict(SCHEDULES[stages][1]))
    return TimeViper(ModelConfig("", "", {"main": tower}, HYBRID, schedule)).double().eval().requires_grad_(False)


@pytest.mark.parametrize("size", [1, 5, 7, 1000])
def test_frames_are_read_one_part_at_a_time(size: int) -> None:
    """Frames come from an iterator; when a part is asked for, the one before has gone through the decoder."""
    model = viewer()
    ids, kind = torch.randint(61, (3 + 9 * 4 + 6,)), kinds("3c36v6i")
    frames = torch.randint(256, (9, 3, 8, 8), dtype=torch.uint8)
    pack = Pack(ids, torch.full_like(ids, -100), kind, [len(ids)], frames, torch.zeros(9), [9])
    whole = prefill_pack(model, pack)
    alive: list[int] = []

    def camera():
        for part in frames.split(2):
            alive.append(1)
            yield part

    chunks = in_pieces(embed_frames(model, ids, kind, camera(), torch.zeros(36)), size)
    first, _ = next(chunks)
    assert len(first) == min(size, 45)
    assert len(alive) == (5 if size == 1000 else 1)
    left = list(chunks)
    assert {len(x) for x, _ in left[:-1]} <= {size}
    start = prefill_chunks(
        model.decoder, in_pieces(embed_frames(model, ids, kind, camera(), torch.zeros(36)), size), 36, 9 + 5
    )
    assert_close(start.hidden, whole.hidden, **CLOSE)
    assert torch.equal(write(model.decoder, start, 5)[0], write(model.decoder, whole, 5)[0])
    with pytest.raises(ValueError, match="36 vision positions, but the frames made 28"):
        list(embed_frames(model, ids, kind, frames[:7].split(3), torch.zeros(9)))


def test_bad_prompts_are_named() -> None:
    decoder = make_decoder(replace(HYBRID, max_tokens=12), {"a": TransVStage(1, 0.5)})
    for prompts, options, message in [
        ([torch.arange(3), torch.arange(0)], {}, "prompt 1 must be int64"),
        ([torch.arange(3.0)], {}, "prompt 0 must be int64"),
        ([torch.tensor([3, 61])], {}, "vocabulary has 61"),
        ([torch.tensor([-1])], {}, "vocabulary has 61"),
        ([torch.arange(9)], {}, "prompt 0 has 9 tokens and 5 are to be written"),
        ([torch.arange(13)], {}, "max_tokens = 12"),
        ([torch.arange(3)], dict(temperature=-1.0), "temperature"),
        ([torch.arange(3)], dict(temperature=torch.inf), "temperature"),
        ([torch.arange(3)], dict(top_p=0.0), "top_p"),
        ([torch.arange(3)], dict(top_p=torch.nan), "top_p"),
    ]:
        with pytest.raises(ValueError, match=message):
            generate(decoder, prompts, 5, **options)
    assert generate(decoder, [], 5) == []
    prompt = make_prompts(["1c6v2i"])[0]
    for count in (5, 7):
        with pytest.raises(ValueError, match="`vision` says"):
            prefill_chunks(decoder, pieces(prompt, 3), count)
    with pytest.raises(ValueError, match="no token"):
        prefill_chunks(decoder, [], 0)
    decoder.norm_f.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        generate(decoder, [torch.arange(3)], 5)

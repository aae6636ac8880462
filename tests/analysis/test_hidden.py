"""Hidden attention: rows, column sums and buckets against the dense matrix, and values that can be told by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from timeviper.analysis.hidden import (
    Asked,
    Measure,
    Queries,
    Scanned,
    add_attention,
    add_rows,
    attention_rows,
    bucket_mass,
    column_energy,
    column_sums,
    entropy,
    mean_distance,
    rows,
)
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.ssd import ssd_reference

H, G, N, P = 8, 2, 6, 3
PACKS = [[64], [128], [256], [40, 1, 87], [100, 0, 156]]


def random_scan(lengths: list[int], seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Scanned, Tensor]:
    """A scan's inputs with rates from slow to fast, and its y without D."""
    g = torch.Generator().manual_seed(seed)
    L = sum(lengths)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x, dt, B, C = normal(L, H, P), normal(L, H) - 2, normal(L, G, N), normal(L, G, N)
    A, bias = -torch.logspace(-2, 1, H, dtype=torch.float64), normal(H) * 0.3
    bounds = Bounds(lengths)
    y, _ = ssd_reference(x, dt, A, B, C, torch.zeros(H, dtype=torch.float64), bias, bounds, None)
    x, dt, A, B, C, bias = (t.to(dtype) for t in (x, dt, A, B, C, bias))
    return Scanned.of(x, dt, A, B, C, bias, bounds), y


def dense(tokens: Scanned) -> Tensor:
    """M `[H, L, L]` by its definition."""
    L, heads = tokens.step.shape
    repeat = heads // tokens.B.shape[1]
    B, C = (t.repeat_interleave(repeat, 1) for t in (tokens.B, tokens.C))
    found = torch.zeros(heads, L, L, dtype=torch.float64)
    for a, b in zip(tokens.bounds.offsets, tokens.bounds.offsets[1:]):
        for i in range(a, b):
            back = tokens.log_decay[a + 1 : i + 1].flip(0).cumsum(0).flip(0)  # what lies behind each token, up to i
            decay = torch.cat([back, back.new_zeros(1, heads)]).exp()
            found[:, i, a : i + 1] = ((C[i] * B[a : i + 1]).sum(-1) * decay * tokens.step[a : i + 1]).T
    return found


def made(step: Tensor, A: float, B: Tensor, C: Tensor, lengths: list[int] | None = None) -> Scanned:
    """One head each group, x of ones."""
    log_decay = step * A
    bounds = Bounds(lengths or [len(step)])
    return Scanned(torch.ones(*step.shape, 1, dtype=torch.float64), step, log_decay, log_decay.cumsum(0), B, C, bounds)


def constant(length: int, step: float, A: float, lengths: list[int] | None = None) -> Scanned:
    ones = torch.ones(length, 1, 1, dtype=torch.float64)
    return made(torch.full((length, 1), step, dtype=torch.float64), A, ones, ones, lengths)


def all_rows(tokens: Scanned) -> Tensor:
    """`[H, L, L]` by `rows`."""
    return rows(tokens.queries(torch.arange(len(tokens.x))), tokens).transpose(0, 1)


@pytest.mark.parametrize("lengths", PACKS)
def test_everything_equals_the_dense_matrix(lengths: list[int]) -> None:
    tokens, y = random_scan(lengths)
    M = dense(tokens)
    L = len(y)
    assert_close(torch.einsum("hij,jhp->ihp", M, tokens.x), y, rtol=1e-12, atol=1e-12)
    assert_close(all_rows(tokens), M, rtol=1e-12, atol=1e-13)
    weight = torch.rand(L, H, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert_close(column_sums(tokens, weight), torch.einsum("ih,hij->jh", weight, M), rtol=0, atol=1e-11)
    w = weight[:, 0]
    energy = torch.einsum("i,hij->jh", w, M**2)
    assert_close(column_sums(tokens, w), torch.einsum("i,hij->jh", w, M), rtol=0, atol=1e-11)
    assert_close(column_energy(tokens, w), energy, rtol=1e-11, atol=1e-11)
    bucket = torch.arange(L) // 10
    chosen = torch.nn.functional.one_hot(bucket).double()
    assert_close(bucket_mass(tokens, bucket, len(chosen.T)), torch.einsum("hij,jf->ihf", M, chosen), rtol=0, atol=1e-12)


def test_energy_is_estimated_from_random_signs() -> None:
    tokens, _ = random_scan([128])
    weight = torch.ones(128, dtype=torch.float64)
    exact = column_energy(tokens, weight)
    for probes, most in ((64, math.sqrt(2 / 64)), (256, math.sqrt(2 / 256))):
        error = (column_energy(tokens, weight, probes) / exact - 1).square().mean().sqrt()
        assert float(error) < 1.2 * most, probes


@pytest.mark.parametrize("measure", ["signed", "absolute", "mass"])
def test_pieces_add_up_to_the_dense_rows(measure: Measure) -> None:
    """512 tokens in uneven pieces, queries at the end, in the middle and behind each other."""
    whole, _ = random_scan([512])
    places = torch.tensor([511, 17, 300, 510])
    bucket = torch.arange(512) // 7
    M = dense(whole)[:, places].transpose(0, 1)  # [K, H, L]
    want = M if measure == "signed" else M.abs()
    want = want * whole.x.norm(dim=-1).T if measure == "mass" else want
    want = torch.zeros(4, H, 74, dtype=torch.float64).index_add_(2, bucket, want)
    before, queries, pieces = None, [], []
    for start, stop in ((0, 100), (100, 101), (101, 384), (384, 512)):
        cut = slice(start, stop)
        sums = whole.log_decay[cut].cumsum(0, dtype=torch.float64)
        sums = sums if before is None else sums + before
        before = sums[-1]
        fields = (whole.x[cut], whole.step[cut], whole.log_decay[cut], sums, whole.B[cut], whole.C[cut])
        pieces.append((start, Scanned(*fields, Bounds([stop - start]))))
        inside = places[(places >= start) & (places < stop)]
        queries.append(pieces[-1][1].queries(inside - start, start))
    asked = Queries.join(queries)
    order = [int(torch.nonzero(asked.place == p)) for p in places]
    out = torch.zeros_like(want)
    for start, piece in pieces:
        add_rows(out, asked, piece, bucket[start : start + len(piece.x)], start, measure)
    assert_close(out[order], want, rtol=0, atol=1e-12)


def test_float32_over_a_long_sum() -> None:
    """Rates of an hour: decays between neighbours keep their digits where the sums have lost theirs."""
    ones = torch.ones(160_000, 1, 1)
    step = torch.full((160_000, 1), 0.3)
    sums = (-step).cumsum(0, dtype=torch.float64)
    tokens = Scanned(torch.ones(160_000, 1, 1), step, -step, sums, ones, ones, Bounds([160_000]))
    found = rows(tokens.queries(torch.tensor([159_999])), tokens)[0, 0, -4:]
    rate = float(step[0, 0])
    want = torch.tensor([rate * math.exp(-rate * n) for n in (3, 2, 1, 0)], dtype=torch.float64)
    assert_close(found.double(), want, rtol=1e-6, atol=0)


def test_half_is_left_of_each_token() -> None:
    tokens = constant(64, 0.25, -4 * math.log(2))
    M = all_rows(tokens)[0]
    i = torch.arange(64, dtype=torch.float64)
    assert_close(M, (0.5 ** (i[:, None] - i) / 4).tril(), rtol=1e-12, atol=0)
    assert_close(M.sum(1), (2 - 2**-i) / 4, rtol=1e-12, atol=0)
    last = rows(tokens.queries(torch.tensor([63])), tokens)
    assert_close(float(mean_distance(last, torch.tensor([63]))), 1.0, rtol=1e-12, atol=0)
    assert_close(float(entropy(last)), 2.0, rtol=1e-12, atol=0)
    ratio = math.exp(-0.25 * 4 * math.log(2))
    want = 0.25 * (1 - ratio ** (64 - i)) / (1 - ratio)
    assert_close(column_sums(tokens, torch.ones(64, dtype=torch.float64))[:, 0], want, rtol=1e-12, atol=0)


def test_a_needle() -> None:
    B = torch.zeros(64, 1, 2, dtype=torch.float64)
    B[:, 0, 0] = 1
    B[20, 0] = torch.tensor([0.0, 1.0], dtype=torch.float64)
    C = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(64, 1, 2)
    tokens = made(torch.full((64, 1), 0.1, dtype=torch.float64), -1.0, B, C)
    row = rows(tokens.queries(torch.tensor([63])), tokens)[0, 0]
    assert_close(float(row[20]), 0.0013568559, rtol=1e-7, atol=0)
    assert float(row.abs().sum()) == float(row[20])


def test_a_pause_takes_no_time() -> None:
    step = torch.full((64, 1), 0.1, dtype=torch.float64)
    step[10:60] = 0
    ones = torch.ones(64, 1, 1, dtype=torch.float64)
    row = rows((tokens := made(step, -1.0, ones, ones)).queries(torch.tensor([63])), tokens)[0, 0]
    assert_close(float(row[9]), 0.1 * math.exp(-0.4), rtol=1e-12, atol=0)
    assert float(row[10:60].abs().max()) == 0


def test_signs_cancel_in_sums_but_not_in_sizes() -> None:
    B = torch.ones(64, 1, 1, dtype=torch.float64)
    B[1::2] = -1
    tokens = made(torch.full((64, 1), 0.1, dtype=torch.float64), 0.0, B, torch.ones_like(B))
    last = tokens.queries(torch.tensor([63]))
    assert_close(float(rows(last, tokens).sum()), 0.0, rtol=0, atol=1e-12)
    out = torch.zeros(1, 1, 1, dtype=torch.float64)
    add_rows(out, last, tokens, torch.zeros(64, dtype=torch.int64), measure="absolute")
    assert_close(float(out), 6.4, rtol=1e-12, atol=0)


def test_sequences_stay_apart() -> None:
    tokens = constant(64, 0.1, -1.0, [30, 34])
    row = rows(tokens.queries(torch.tensor([63])), tokens)[0, 0]
    assert float(row[:30].abs().max()) == 0
    assert_close(float(row[30]), 0.1 * math.exp(-3.3), rtol=1e-12, atol=0)


def test_heads_share_groups_side_by_side() -> None:
    B = torch.tensor([1.0, 2.0], dtype=torch.float64).view(1, 2, 1)
    step = torch.full((1, 4), 0.1, dtype=torch.float64)
    tokens = made(step, -1.0, B, torch.ones_like(B))
    assert_close(all_rows(tokens).flatten().tolist(), [0.1, 0.1, 0.2, 0.2], rtol=1e-12, atol=0)


def test_softmax_rows_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timeviper.analysis.hidden.BLOCK", 32)  # one key at a time
    g = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(n, heads, 5, generator=g, dtype=torch.float64) * 3 for n, heads in ((3, 4), (40, 2), (40, 2))
    )
    asked = Asked(q, torch.tensor([39, 7, 25]), torch.tensor([10, 0, 10]))
    shares = attention_rows(asked, k)
    assert_close(shares.sum(-1), torch.ones(3, 4, dtype=torch.float64))
    logits = torch.einsum("hp,nhp->hn", q[2], k.repeat_interleave(2, 1)) * 5**-0.5
    assert_close(shares[2, :, 10:26], logits[:, 10:26].softmax(-1))
    assert float(shares[2, :, :10].sum()) == float(shares[2, :, 26:].sum()) == 0
    bucket = torch.arange(40) // 4
    wanted: dict[Measure, Tensor] = {"absolute": shares, "mass": shares * v.norm(dim=-1).repeat_interleave(2, 1).T}
    for measure, want in wanted.items():
        out = torch.zeros(3, 4, 10, dtype=torch.float64)
        add_attention(out, asked, k, v, bucket, measure)
        assert_close(out, torch.zeros_like(out).index_add_(2, bucket, want), rtol=0, atol=1e-12)

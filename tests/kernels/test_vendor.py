"""Every vendor path: on a CPU through twins of the vendors' functions, on a GPU (`-m gpu`) with the real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
import vendor_twins
from model_helpers import HYBRID, PUBLISHED, UNIFORM, Prompt, make_decoder, make_prompts, run
from torch import Tensor
from viper_helpers import config, make_model, samples

from timeviper.config import ParallelConfig, TransVConfig
from timeviper.inference.prefill import prefill, prefill_chunks
from timeviper.kernels import dispatch, limits
from timeviper.kernels.attention import attention
from timeviper.kernels.bounds import Bounds
from timeviper.kernels.conv1d import causal_conv1d
from timeviper.kernels.norm import gated_rms_norm, rms_norm
from timeviper.kernels.ssd import ssd
from timeviper.pack import Pack
from timeviper.parallel import wrap_blocks

H, P, G, N, K, HKV = 4, 8, 2, 8, 4, 2
INNER, BC = H * P, G * N
CHANNELS = INNER + 2 * BC
WIDE = INNER + CHANNELS + H + 4  # a row as the projection leaves it: z, (x, B, C), dt; and 4 that make it even
LENGTHS = (19, 1, 0, 40, 23)
OPS = ("ssd", "conv1d", "attention", "norm")

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

# Largest difference from float64, relative to the largest value, of outputs and of gradients. On a GPU Triton
# multiplies float32 in TF32, with 10 digits.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5, torch.bfloat16: 3e-2}
ON_GPU = {torch.float32: 5e-3, torch.bfloat16: 5e-2}


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """One way to call an operation, as a function of wide rows, parameters and states of sequences."""

    name: str
    op: str
    call: Callable[[Tensor, list[Tensor], list[Tensor], Bounds], Sequence[Tensor]]
    states: tuple[tuple[int, ...], ...] = ()
    """Shapes of a sequence's; with `carry` those of one."""
    carry: bool = False


def split(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return rows[:, :-4].split([INNER, CHANNELS, H], -1)[0:3]  # pyright: ignore[reportReturnType]


def _ssd(need_state: bool, carry: bool = False) -> Callable:
    def call(rows: Tensor, shared: list[Tensor], states: list[Tensor], bounds: Bounds) -> Sequence[Tensor]:
        _, xBC, dt = split(rows)
        x, B, C = (xBC * 1).split([INNER, BC, BC], -1)
        A, D, bias = (t[:H] for t in shared[:3])
        parts = x.unflatten(1, (H, P)), dt, -A.exp(), B.unflatten(1, (G, N)), C.unflatten(1, (G, N)), D, bias
        y, final = ssd(*parts, bounds, states[0] if states else None, 16, need_state, carry)
        return (y, final) if need_state else (y,)

    return call


def _conv(carry: bool = False) -> Callable:
    def call(rows: Tensor, shared: list[Tensor], states: list[Tensor], bounds: Bounds) -> Sequence[Tensor]:
        weight, bias = shared[3].unflatten(0, (CHANNELS, K)), shared[4]
        return causal_conv1d(split(rows)[1], weight, bias, bounds, states[0] if states else None, carry=carry)

    return call


def _attention(rows: Tensor, shared: list[Tensor], states: list[Tensor], bounds: Bounds) -> Sequence[Tensor]:
    q, k, v = rows[:, : INNER + 2 * HKV * P].split([INNER, HKV * P, HKV * P], -1)
    q, k, v = (t.unflatten(1, (-1, P)) for t in (q, k, v))
    return (attention(q, k, v, bounds, bounds, causal=True),)


def _norms(rows: Tensor, shared: list[Tensor], states: list[Tensor], bounds: Bounds) -> Sequence[Tensor]:
    gate, xBC, _ = split(rows)
    weight = shared[5]
    return gated_rms_norm(xBC[:, :INNER], gate, weight, 2, 1e-5), rms_norm(xBC[:, :INNER], weight, 1e-5)


CASES = [
    Case("scan of training packs", "ssd", _ssd(False)),
    Case("scan from nothing", "ssd", _ssd(True)),
    Case("scan with states", "ssd", _ssd(True), ((H, P, N),)),
    Case("scan of a piece", "ssd", _ssd(True, True), ((H, P, N),), True),
    Case("convolution", "conv1d", _conv()),
    Case("convolution with states", "conv1d", _conv(), ((CHANNELS, K - 1),)),
    Case("convolution of a piece", "conv1d", _conv(True), ((CHANNELS, K - 1),), True),
    Case("attention", "attention", _attention),
    Case("norms", "norm", _norms),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def inputs(case: Case, lengths: Sequence[int]) -> list[Tensor]:
    """Wide rows, parameters, states, in float64."""
    shared = [normal(i, size) * 0.5 for i, size in enumerate([H, H, H, CHANNELS * K, CHANNELS, INNER])]
    count = 1 if case.carry else len(lengths)
    return [normal(9, sum(lengths), WIDE), *shared, *(normal(10, count, *shape) for shape in case.states)]


def compute(case: Case, leaves: list[Tensor], lengths: Sequence[int], form: str = "") -> list[Tensor]:
    """Outputs and gradients of everything under random weights of every output."""
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    with dispatch.use(**{case.op: form}) if form else nullcontext():
        outputs = case.call(leaves[0], leaves[1:7], leaves[7:], Bounds(lengths, leaves[0].device))
    weights = (normal(99, *o.shape).to(o) for o in outputs)
    total = torch.stack([(o * w).sum() for o, w in zip(outputs, weights)]).sum()
    grads = torch.autograd.grad(total, leaves, allow_unused=True)
    return [*(o.detach() for o in outputs), *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads))]


def assert_near(got: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float) -> None:
    assert [t.shape for t in got] == [t.shape for t in wanted]
    for i, (a, b) in enumerate(zip(got, wanted)):
        a, b = a.cpu().double(), b.cpu().double()
        assert a.isfinite().all()
        assert b.numel() == 0 or (a - b).abs().max() <= tolerance * b.abs().max(), (i, a.shape)


@pytest.fixture(params=["flash_attn", "torch", pytest.param("cuda", marks=gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The CPU with twins, of flash-attn or of torch's own; or a GPU, with what is installed there."""
    vendor_twins.calls.clear()
    if request.param == "cuda":
        yield torch.device("cuda")
        return
    functions = vendor_twins.twins() if request.param == "flash_attn" else vendor_twins.with_torch_attention()
    with dispatch.stand_in(functions):
        yield torch.device("cpu")


def skip_where_impossible(case: Case, device: torch.device, dtype: torch.dtype) -> None:
    if dtype not in (TOLERANCE if device.type == "cpu" else ON_GPU):
        pytest.skip("no vendor computes in float64")
    if case.op == "attention" and dtype == torch.float32:
        pytest.skip("no flash kernel computes in float32")
    if why := dispatch.obstacle(case.op, device, dtype):
        pytest.skip(why)


@every_case
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_vendor_path_is_the_definition(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    skip_where_impossible(case, device, dtype)
    rounded = [t.to(dtype) for t in inputs(case, LENGTHS)]
    got = compute(case, [t.to(device) for t in rounded], LENGTHS, "vendor")
    assert device.type == "cuda" or vendor_twins.calls.total() > 0
    assert all(t.dtype in (dtype, torch.float32) for t in got)
    tolerance = (TOLERANCE if device.type == "cpu" else ON_GPU)[dtype]
    assert_near(got, compute(case, [t.double() for t in rounded], LENGTHS, "reference"), tolerance)


def test_states_without_gradients_come_from_one_call(device: torch.device) -> None:
    case, lengths = CASES[1], (19, 1, 40)
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    skip_where_impossible(case, device, dtype)
    exact = inputs(case, lengths)
    rows, *rest = (t.to(device, dtype) for t in exact)
    with torch.no_grad():
        got = case.call(rows, rest[:6], [], Bounds(lengths, device))
        with dispatch.use(ssd="reference"):
            wanted = case.call(exact[0], exact[1:7], [], Bounds(lengths))
    assert device.type == "cuda" or vendor_twins.calls["mamba_chunk_scan_combined"] == 1
    assert_near(got, wanted, 1e-11 if device.type == "cpu" else 5e-3)


@every_case
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("where", [pytest.param("cuda", marks=gpu)])
def test_torch_forms_on_a_gpu(case: Case, dtype: torch.dtype, where: str) -> None:
    rounded = [t.to(dtype) for t in inputs(case, LENGTHS)]
    got = compute(case, [t.to(where) for t in rounded], LENGTHS, "torch")
    assert_near(got, compute(case, [t.double() for t in rounded], LENGTHS, "reference"), TOLERANCE[dtype])


# Elements that a tensor may span (conv1d: twice as many). 83 rows of 104 make 8,632, of 64 (x, B and C) 5,312, of 32
# (one of z, x, y) 2,656.
ROOM = {"whole": 9_000, "copies": 5_500, "pieces": 2_600, "torch": 30}
EXPECTED_CALLS = {  # of (whole, copies, pieces): what each remedy costs
    "scan of training packs": (1, 1, 3),
    "scan of a piece": (1, 1, 3),
    "convolution": (1, 1, 2),
    "norms": (2, 2, 4),
}


@every_case
@pytest.mark.parametrize("remedy", ROOM)
def test_what_spans_too_much_is_computed_all_the_same(
    case: Case, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    leaves = inputs(case, LENGTHS)
    wanted = compute(case, leaves, LENGTHS, "torch")
    vendor_twins.calls.clear()
    dispatch.reset_log()
    room = ROOM[remedy]
    with dispatch.stand_in(vendor_twins.twins(room), room), caplog.at_level("INFO", "timeviper"):
        assert_near(compute(case, leaves, LENGTHS), wanted, 1e-11)
        compute(case, leaves, LENGTHS)
    if remedy == "torch" and case.op != "attention":
        assert vendor_twins.calls.total() == 0
        assert [r.message for r in caplog.records].count(caplog.records[0].message) == 1, "told once"
        assert "can address" in caplog.records[0].message
    elif case.name in EXPECTED_CALLS:
        assert vendor_twins.calls.total() == 2 * EXPECTED_CALLS[case.name][list(ROOM).index(remedy)]
        assert not caplog.records


@every_case
def test_without_the_guard_addresses_are_wrong(case: Case) -> None:
    """The twins refuse what the guard is there to prevent; attention's offsets have 64 bits."""
    if case.op == "attention":
        return
    leaves = inputs(case, LENGTHS)
    with dispatch.stand_in(vendor_twins.twins(2_600)), pytest.raises(IndexError, match="spans more than"):
        compute(case, leaves, LENGTHS)


@pytest.mark.parametrize("op", ["ssd", "conv1d", "norm"])
def test_a_wide_gradient_is_made_narrow(op: str) -> None:
    """The gradient of an output may be a view of something wider than the output."""
    case = next(c for c in CASES if c.op == op)
    leaves = [t.requires_grad_() for t in inputs(case, LENGTHS)]
    with dispatch.stand_in(vendor_twins.twins(9_000), 9_000):
        y = case.call(leaves[0], leaves[1:7], leaves[7:], Bounds(LENGTHS))[0].flatten(1)
        padded = torch.cat([y, y.new_zeros(len(y), 1000)], 1)  # its gradient's rows are 1000 wider
        padded.square().sum().backward()
    assert leaves[0].grad is not None


def test_a_query_of_few_sequences() -> None:
    """Flash attention takes it for granted that sequences of at most one query have one each."""
    q, k = normal(1, 2, H, P), normal(2, 9, HKV, P)
    bounds = Bounds([1, 0, 1]), Bounds([4, 2, 3])
    with dispatch.use(attention="reference"):
        wanted = attention(q, k, k, *bounds, causal=True)
    for functions in (vendor_twins.twins(), vendor_twins.with_torch_attention()):
        with dispatch.stand_in(functions), dispatch.use(attention="vendor"):
            assert_near([attention(q, k, k, *bounds, causal=True)], [wanted], 1e-12)


def test_pieces_of_a_pack() -> None:
    bounds = Bounds([0, 5, 0, 3, 8, 0, 0, 4, 0])
    pieces = limits.cut(bounds, 5)
    assert [p.bounds.lengths for p in pieces] == [(0, 5, 0), (3, 2), (5,), (1, 0, 0, 4, 0)]
    assert [p.continues for p in pieces] == [False, False, True, True]
    assert [range(9)[p.sequences] for p in pieces] == [range(3), range(3, 5), range(4, 5), range(4, 9)]
    assert limits.cut(bounds, 5) is pieces, "kept for the next layer"
    assert [p.bounds.num_tokens for p in limits.cut(bounds, 9, 4)] == [8, 8, 4]


def test_extents() -> None:
    rows = torch.empty(10, 40)
    assert limits.extent(rows[:, 3:7]) == 9 * 40 + 4
    assert limits.extent(rows[:0]) == 0
    assert limits.rows_within(100, rows[:, 3:7]) == 3
    assert limits.rows_within(104, rows[:, :24]) == 3
    assert limits.rows_within(103, rows[:, :24]) == 2
    assert limits.rows_within(30, rows) == 0
    assert limits.rows_within(100, rows[:1].expand(10, -1)) == 10
    assert limits.slim(rows[:, 3:7], 300).is_contiguous()
    assert limits.slim(rows[:, 3:7], 400).stride(0) == 40
    assert limits.slim(rows[:, :30], 300).stride(0) == 40, "a copy of nearly everything is not cheap"


DECODER = replace(HYBRID, ssm_state=8)  # channels that causal_conv1d takes


@pytest.mark.parametrize("room", [0, 1500], ids=["whole", "in pieces"])
def test_a_whole_decoder(room: int, device: torch.device) -> None:
    """Hidden states, gradients of all parameters, prefill and prefill in chunks, as with the torch forms in float64."""
    on_cpu = device.type == "cpu"
    # Rounded scores may rank tokens otherwise: on a GPU numbers alone decide.
    schedule = PUBLISHED if on_cpu else UNIFORM

    def everything(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        decoder = make_decoder(DECODER, schedule).to(device, dtype)
        prompts = [Prompt(p.x.to(device, dtype), p.kind.to(device)) for p in make_prompts()]
        hidden = run(decoder, prompts).hidden
        grads = torch.autograd.grad(hidden.square().sum(), list(decoder.parameters()), allow_unused=True)
        longest = prompts[4]
        whole = prefill(decoder, longest.x, Bounds([len(longest.x)]), longest.kind, [longest.vision])
        chunks = list(zip(longest.x.split(7), longest.kind.split(7)))
        pieces = prefill_chunks(decoder, chunks, longest.vision, len(longest.x) - longest.vision)
        states = [t for s in (whole, pieces) for g in s.state.segments for b in g.blocks if b for t in vars(b).values()]
        return [hidden.detach(), *(g for g in grads if g is not None), whole.hidden, pieces.hidden, *states]

    with dispatch.use(**dict.fromkeys(OPS, "torch")):
        wanted = everything(torch.device("cpu"), torch.float64)
    if not on_cpu:
        assert_near(everything(device, torch.bfloat16), wanted, 0.1)
        return
    with dispatch.stand_in(vendor_twins.twins(room), room) if room else nullcontext():
        got = everything(device, torch.float64)
    assert_all_called()
    assert_near(got, wanted, 1e-9)


def assert_all_called() -> None:
    used = set(vendor_twins.calls)
    assert used > {"mamba_chunk_scan_combined", "causal_conv1d_fn", "rmsnorm_fn"}
    assert used > {"_flash_attention_forward", "_flash_attention_backward"}
    assert used & {"flash_attn_varlen_func", "varlen_attn"}


@pytest.mark.parametrize("queries", ["instruction", "instruction+answer"])
@pytest.mark.parametrize("size", [None, 0, 5])
def test_training_in_pieces(
    queries: Literal["instruction", "instruction+answer"], size: int | None, device: torch.device
) -> None:
    """Loss and gradients of whole packs with frames; blocks computed again whole (0) or 5 tokens at a time."""
    if device.type == "cuda":
        pytest.skip("exact in float64, which no vendor computes in")
    pack = Pack.join(samples())

    def step() -> list[Tensor]:
        transv = TransVConfig(stages=dict(PUBLISHED), queries=queries)
        model = make_model(replace(config(), decoder=DECODER, transv=transv))
        if size is not None:
            wrap_blocks(model, ParallelConfig(activation_checkpointing="all", tokens_per_piece=size))
        loss = model(pack).loss_sum
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        return [loss.detach(), *(g for g in grads if g is not None)]

    with dispatch.use(**dict.fromkeys(OPS, "torch")):
        wanted = step()
    got = step()
    assert_all_called()
    assert_near(got, wanted, 1e-9)

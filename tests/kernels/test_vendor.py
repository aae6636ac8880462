"""Every vendor path: on a CPU through twins of the vendors' functions, on a GPU (`-m gpu`) with the real ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

import pytest
import torch
import vendor_twins
from kernel_cases import CASES, HKV, LENGTHS, Case, H, P, assert_near, compute, inputs, normal
from model_helpers import HYBRID, PUBLISHED, UNIFORM, Prompt, make_decoder, make_prompts, run
from torch import Tensor
from viper_helpers import config, make_model, samples

from timeviper.config import ParallelConfig, TransVConfig
from timeviper.inference.prefill import prefill, prefill_chunks
from timeviper.kernels import dispatch
from timeviper.kernels.attention import attention
from timeviper.kernels.bounds import Bounds
from timeviper.pack import Pack
from timeviper.parallel import wrap_blocks

OPS = ("ssd", "conv1d", "attention", "norm")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

# Largest difference from float64, relative to the largest value, of outputs and of gradients. On a GPU Triton
# multiplies float32 in TF32, with 10 digits.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5, torch.bfloat16: 3e-2}
ON_GPU = {torch.float32: 5e-3, torch.bfloat16: 5e-2}


every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


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


def test_a_query_of_few_sequences() -> None:
    """Flash attention takes it for granted that sequences of at most one query have one each."""
    q, k = normal(1, 2, H, P), normal(2, 9, HKV, P)
    bounds = Bounds([1, 0, 1]), Bounds([4, 2, 3])
    with dispatch.use(attention="reference"):
        wanted = attention(q, k, k, *bounds, causal=True)
    for functions in (vendor_twins.twins(), vendor_twins.with_torch_attention()):
        with dispatch.stand_in(functions), dispatch.use(attention="vendor"):
            assert_near([attention(q, k, k, *bounds, causal=True)], [wanted], 1e-12)


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
        whole = prefill(decoder, longest.x, Bounds([len(longest.x)]), longest.kind)
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

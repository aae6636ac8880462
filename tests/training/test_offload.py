"""Saved tensors on the host: when they leave, when they come back, and that nothing else changes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any
from weakref import ref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from timeviper.offload import HostActivations, Lane, Schedule, StreamLane

WIDTH, BLOCKS = 32, 5


class LateLane(Lane):
    """Copies no sooner than somebody waits for them, in order, as a stream may; until then the target is not filled."""

    def __init__(self) -> None:
        self.pending: list[tuple[ref[Tensor], ref[Tensor], int]] = []
        self.hosts: list[ref[Tensor]] = []
        self.devices: list[ref[Tensor]] = []
        self.events: list[str] = []
        self.most = [0, 0]  # tensors on the device at a time, while going and while coming

    def copy(self, source: Tensor, target: Tensor) -> int:
        target.fill_(torch.nan)
        known = [i for i, host in enumerate(self.hosts) if host() is source]
        if not known:
            self.hosts.append(ref(target))
        number = known[0] if known else len(self.hosts) - 1
        self.devices.append(ref(target if known else source))
        self.events.append(f"{'back' if known else 'out'} {number}")
        self.pending.append((ref(source), ref(target), len(self.events)))
        self.most[bool(known)] = max(self.most[bool(known)], sum(d() is not None for d in self.devices))
        return len(self.events)

    def wait(self, copied: int) -> None:
        while self.pending and self.pending[0][2] <= copied:
            source, target = (r() for r in self.pending.pop(0)[:2])
            if target is not None:  # else both belong to a graph that is gone
                assert source is not None, "let go before it was copied"
                target.copy_(source)
        self.events.append("wait " + self.events[copied - 1])

    def alive(self) -> int:
        return sum(host() is not None for host in self.hosts)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.breaks = False

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.nn.functional.gelu(self.up(x))
        if self.breaks:
            raise RuntimeError("out of memory, say")
        return x + self.down(hidden)


def stack(lane: Lane | None, checkpointed: bool = True, blocks: int = BLOCKS) -> nn.Sequential:
    """Blocks with the same weights each time; without a lane they keep what they save."""
    torch.manual_seed(0)
    schedule = Schedule(lane)

    def wrapped() -> nn.Module:
        block = checkpoint_wrapper(Block()) if checkpointed else Block()
        return block if lane is None else HostActivations(block, schedule)

    return nn.Sequential(*(wrapped() for _ in range(blocks)))


def pack(length: int) -> Tensor:
    return torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(length)).requires_grad_()


def gradients(model: nn.Module, lengths: list[int]) -> list[Tensor]:
    for n in lengths:
        model(pack(n)).square().sum().backward()
    return taken(model)


def taken(model: nn.Module) -> list[Tensor]:
    """The gradients, which are gone then."""
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    assert len(found) == 4 * len(model)  # pyright: ignore[reportArgumentType]
    return found


def assert_same(a: list[Tensor], b: list[Tensor]) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Memory must go with the last reference, not when a collector comes around."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_block_leaves_while_the_next_one_computes_and_comes_back_one_ahead() -> None:
    lane = LateLane()
    gradients(stack(lane), [16])
    assert lane.events == [
        *("out 0", "out 1", "wait out 0", "out 2"),  # before the third leaves, the first one is gone
        *("wait out 1", "out 3", "wait out 2", "out 4"),
        "wait out 4",  # the backward pass begins with what is there still
        *("back 2", "wait out 3"),  # block 2 comes while block 3 computes
        *("back 1", "wait back 2", "back 0", "wait back 1", "wait back 0"),
    ]
    assert lane.most == [2, 2]
    assert lane.alive() == 0


@given(
    lengths=st.lists(st.integers(8, 40), min_size=1, max_size=3),
    blocks=st.integers(1, 6),
    checkpointed=st.booleans(),
    late=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_gradients_are_those_without_it_bit_for_bit(
    lengths: list[int], blocks: int, checkpointed: bool, late: bool
) -> None:
    lane = LateLane() if late else Lane()
    found = gradients(stack(lane, checkpointed, blocks), lengths)
    assert_same(found, gradients(stack(None, checkpointed, blocks), lengths))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_packs_may_wait_for_each_other(order: tuple[int, int]) -> None:
    def run(model: nn.Module) -> list[Tensor]:
        losses = [model(pack(n)).square().sum() for n in (16, 24)]
        for i in order:
            losses[i].backward()
        return taken(model)

    assert_same(run(stack(LateLane(), False)), run(stack(None, False)))


def test_a_retained_graph_brings_its_tensors_again() -> None:
    def run(model: nn.Module) -> list[Tensor]:
        loss = model(pack(16)).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        return taken(model)

    assert_same(run(stack(LateLane(), False)), run(stack(None, False)))


def test_without_gradients_nothing_leaves() -> None:
    lane = LateLane()
    with torch.no_grad():
        stack(lane)(pack(16))
    assert lane.events == []


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("checkpointed", [True, False])
def test_a_backward_pass_that_never_comes_keeps_nothing(checkpointed: bool) -> None:
    lane = LateLane()
    model = stack(lane, checkpointed)
    loss = model(pack(16)).square().sum()
    assert lane.alive() >= BLOCKS
    del loss
    assert lane.alive() == 0
    assert_same(gradients(model, [24]), gradients(stack(None, checkpointed), [24]))


@pytest.mark.usefixtures("no_collector")
def test_an_error_in_the_middle_keeps_nothing_and_the_next_step_is_right() -> None:
    lane = LateLane()
    model = stack(lane, False)
    inner: Any = model[3]
    inner._checkpoint_wrapped_module.breaks = True
    with pytest.raises(RuntimeError, match="out of memory, say"):
        model(pack(16))
    inner._checkpoint_wrapped_module.breaks = False
    assert lane.alive() == 0
    assert_same(gradients(model, [24, 16]), gradients(stack(None, False), [24, 16]))


def test_weights_and_small_tensors_stay() -> None:
    lane = LateLane()
    layer = HostActivations(nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)), Schedule(lane))
    layer(torch.randn(32, 64, requires_grad=True)).sum().backward()
    assert len(lane.hosts) == 3  # the inputs of both maps and of the activation
    lane = LateLane()
    HostActivations(Block(), Schedule(lane))(torch.randn(2, WIDTH, requires_grad=True)).sum().backward()
    assert lane.hosts == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_copies_overlap_and_change_nothing() -> None:
    """Several lengths, each three times: memory that is used again too soon would show in the gradients."""
    lengths = [4096, 1024, 8192] * 3

    def run(lane: Lane | None) -> tuple[list[Tensor], int]:
        model = stack(lane, True, 12).cuda()
        torch.cuda.reset_peak_memory_stats()
        for n in lengths:
            model(pack(n).detach().cuda().requires_grad_()).square().sum().backward()
        return taken(model), torch.cuda.max_memory_allocated()

    found, peak = run(StreamLane(torch.device("cuda", torch.cuda.current_device())))
    wanted, whole = run(None)
    assert_same(found, wanted)
    assert peak < whole

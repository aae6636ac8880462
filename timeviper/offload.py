"""What blocks save for their backward passes, kept in host memory, with copies that overlap with computation.

Copies run on a stream of their own. On the way out the device tensor stays until its copy is done, and two blocks at
most are on their way: when a third begins, the computation waits for the first one's copies and lets its tensors go.
So the last two blocks' tensors are there still when the backward pass begins. On the way back, when a block's tensors
are asked for, those of the block before it are fetched, too, and arrive while the block computes.

On a CPU the same schedule runs with copies that are done at once. Host memory goes with the graph that needs it:
nothing here outlives the loss, whether or not a backward pass comes.
"""

from __future__ import annotations

from collections import deque
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import ActivationWrapper
from torch.distributed.tensor import DTensor

SMALL = 1024  # bytes: what is not worth a transfer to the host
IN_FLIGHT = 2  # blocks whose copies to the host may be under way


class Lane:
    """How tensors travel. This one copies at once, as a CPU does."""

    def copy(self, source: Tensor, target: Tensor) -> Any:
        """Begin to copy what the computation has made of `source` so far; returns what to `wait` for."""
        target.copy_(source)

    def wait(self, copied: Any) -> None:
        """What is computed from now on sees the copy, and may write over its source."""


class StreamLane(Lane):
    """A CUDA stream beside the one that computes. Neither the host nor, before `wait`, the computation waits."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def copy(self, source: Tensor, target: Tensor) -> torch.cuda.Event:
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
        if target.is_cuda:  # fetched, but dropped before it was waited for: its memory is not free until it is filled
            target.record_stream(self.stream)
        done = torch.cuda.Event()
        done.record(self.stream)
        return done

    def wait(self, copied: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.stream.device).wait_event(copied)


class Schedule:
    """The order of copies of all wrapped blocks of a model."""

    def __init__(self, lane: Lane | None = None) -> None:
        """lane: how to copy; by default a stream on a GPU, at once elsewhere."""
        self._lane = lane
        self._leaving: deque[ref[Passage]] = deque()
        self._last: ref[Passage] | None = None

    def begin(self) -> Passage:
        """One forward pass of one block."""
        return Passage(self)

    def lane(self, device: torch.device) -> Lane:
        if self._lane is None:
            self._lane = StreamLane(device) if device.type == "cuda" else Lane()
        return self._lane

    def enter(self, passage: Passage) -> None:
        """The first tensor of a block leaves."""
        passage.before, self._last = self._last, ref(passage)
        self._leaving.append(self._last)
        if len(self._leaving) > IN_FLIGHT and (oldest := self._leaving.popleft()()) is not None:
            for held in oldest.alive():
                held.let_go()


class Passage:
    """What one block saved in one forward pass. It lives as long as one of its tensors does, in the graph."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.before: ref[Passage] | None = None
        self.fetched = False
        self._held: list[ref[Held]] = []

    def keep(self, t: Tensor) -> Held:
        """For a pack hook."""
        if not self._held:
            self.schedule.enter(self)
        held = Held(self, t.detach())  # detached: an output that its own node saves would keep itself alive
        self._held.append(ref(held))
        return held

    def alive(self) -> list[Held]:
        return [held for r in self._held if (held := r()) is not None]

    def fetch(self) -> None:
        """Begin to bring all back, once."""
        if not self.fetched:
            self.fetched = True
            for held in self.alive():
                held.fetch()


class Held:
    """One saved tensor: on the device until it has left, on the host, and on the device again when it is fetched."""

    def __init__(self, passage: Passage, t: Tensor) -> None:
        self.passage, self.device = passage, t.device
        self.lane = passage.schedule.lane(t.device)
        self.host = torch.empty_like(t, device="cpu", pin_memory=t.is_cuda)
        self.on_device: Tensor | None = t
        self.copied = self.lane.copy(t, self.host)

    def let_go(self) -> None:
        self.lane.wait(self.copied)
        self.on_device = None

    def fetch(self) -> None:
        if self.on_device is None:
            self.on_device = torch.empty_like(self.host, device=self.device)
            self.copied = self.lane.copy(self.host, self.on_device)

    def take(self) -> Tensor:
        """For an unpack hook; may be asked again while a graph is retained."""
        self.passage.fetch()
        if (before := self.passage.before and self.passage.before()) is not None:
            before.fetch()
        self.fetch()  # asked again
        self.lane.wait(self.copied)
        t, self.on_device = self.on_device, None
        assert t is not None
        return t


class HostActivations(ActivationWrapper):
    """Keeps what a module saves for its backward pass in host memory: of a checkpointed one, its input.

    Weights are left where they are: a gathered weight is freed after the forward pass and gathered again.
    """

    def __init__(self, module: nn.Module, schedule: Schedule) -> None:
        super().__init__(module)
        self.schedule = schedule

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._checkpoint_wrapped_module(*args, **kwargs)
        passage = self.schedule.begin()

        def pack(t: Tensor) -> Held | Tensor:
            return t if t.nbytes < SMALL or self._is_weight(t) else passage.keep(t)

        def unpack(packed: Held | Tensor) -> Tensor:
            return packed if isinstance(packed, Tensor) else packed.take()

        with saved_tensors_hooks(pack, unpack):
            return self._checkpoint_wrapped_module(*args, **kwargs)

    def _is_weight(self, t: Tensor) -> bool:
        gathered = (p for p in self.parameters() if not isinstance(p, DTensor))
        return t.untyped_storage().data_ptr() in {p.untyped_storage().data_ptr() for p in gathered}

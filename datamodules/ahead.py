"""Steps of one rank read ahead by loader processes, within the memory that they may take.

What is handed to a process is a pack, or, of a large one, a part: a run of its samples. Packs are put together here, in
a thread, straight into pinned memory where that is asked for, while the model computes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from timeviper.datamodules.coming import Coming
from timeviper.datamodules.plan import StepPlan
from timeviper.datamodules.processes import SPAWN, Processes
from timeviper.datamodules.reader import PackReader, item_bytes, plan_bytes
from timeviper.datamodules.room import Room
from timeviper.pack import Pack, StepBatch


@dataclass(frozen=True)
class Bounds:
    """Of what is read ahead: beyond the step that the training process waits for or trains on."""

    steps: int
    gb: float
    """At least one part is read ahead, whatever its size."""
    workers: int

    @property
    def bytes(self) -> int:
        return int(self.gb * 1e9)

    @property
    def part(self) -> int:
        """Bytes of a part, unless a single sample has more: each process may read one and have another ready."""
        return self.bytes // (2 * self.workers)


def parts(share: StepPlan, most: int, image_size: int) -> Iterator[tuple[int, StepPlan]]:
    """A rank's share of a step in runs of samples of at most `most` bytes, but at least one sample, each with the
    number of its pack. A share without packs is one part."""
    rest = share.too_long
    for number, items in enumerate(share.packs or ((),)):
        run, size = [], 0
        for item in items:
            if run and size + item_bytes(item, image_size) > most:
                yield number, replace(share, packs=(tuple(run),), too_long=rest)
                run, size, rest = [], 0, ()
            run.append(item)
            size += item_bytes(item, image_size)
        yield number, replace(share, packs=(tuple(run),), too_long=rest)
        rest = ()


class Ahead:
    """The steps as they come. The last one closes it, as an error does."""

    def __init__(
        self,
        reader: PackReader,
        plans: Iterable[StepPlan],
        bounds: Bounds,
        pin: bool,
        processes: Processes | None = None,
    ) -> None:
        """processes: that were started beforehand, with this reader."""
        self._reader, self._plans, self._bounds, self._pin = reader, plans, bounds, pin
        self._steps: deque[_Step] = deque()  # that the training process has not taken
        self._named = -1  # number of the last step that it knows of, if only as coming
        self._handed = -1  # of the last one that it waits for or has taken
        self._next: _Part | None = None  # that a process will get
        self._begun: dict[int, _Part] = {}  # by the number of their job
        self._is_over = self._is_closed = False
        self._end: BaseException | None = None  # of the plan, behind the last step
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._woken, self._wake = SPAWN.Pipe(duplex=False)
        self._processes = processes or Processes(reader, bounds.workers)
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._thread.start()

    # ---- the training process's side --------------------------------------------------------------------

    def __iter__(self) -> Iterator[Coming]:
        while self._is_planned(self._named + 1):
            yield Coming(partial(self._read, self._named))

    def _is_planned(self, number: int) -> bool:
        """Whether there is such a step; waits for its plan."""
        with self._changed:
            self._named = number
            self._nudge()
            self._changed.wait_for(lambda: self._known > number or self._is_over or self._error)
            is_planned, error = self._known > number, self._error or self._end
        if not is_planned and error:
            self.close()
            raise error
        return is_planned

    @property
    def _known(self) -> int:
        """Steps of which the plan is there, those that were taken among them."""
        return self._steps[-1].number + 1 if self._steps else self._handed + 1

    def _read(self, number: int) -> StepBatch:
        with self._changed:
            self._handed = number
            self._nudge()
            while self._steps[0].number < number:  # somebody did not want them
                self._steps.popleft()
            step = self._steps[0]
            self._changed.wait_for(lambda: step.batch or self._error)
            self._steps.popleft()
            is_last = self._is_over and not self._steps
        if step.batch is None or is_last:
            self.close()
        if step.batch is None:
            assert self._error is not None
            raise self._error
        return step.batch

    def close(self) -> None:
        """End the thread and the processes, whatever they are doing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._wake.send_bytes(b"0")
        self._thread.join()
        self._woken.close()
        self._wake.close()

    def _nudge(self) -> None:
        """Have the thread look at what has changed."""
        if not self._is_closed:
            self._wake.send_bytes(b"1")

    # ---- in the thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            queue = self._parts()
            while not self._is_closed:
                self._begin(queue)
                for job, batch in self._processes.finished(self._woken):
                    self._put(self._begun.pop(job), batch)
                    del batch  # a view of memory that the other process has filled
                while self._woken.poll():
                    self._woken.recv_bytes()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
        finally:
            self._processes.close()

    def _parts(self) -> Iterator[_Part | None]:
        """All parts of all steps in order; None where the next step may not be planned yet."""
        plans = iter(self._plans)
        for number in range(2**63):
            while number > max(self._named, max(self._handed, 0) + self._bounds.steps):
                yield None
            try:
                share = next(plans, None)
            except Exception as error:
                self._end, share = error, None
            with self._changed:
                if share is None:
                    self._is_over = True
                else:
                    self._steps.append(step := _Step(number, share, self._bounds.part, self._reader, self._pin))
                self._changed.notify_all()
            if share is None:
                return
            yield from step.parts

    def _begin(self, queue: Iterator[_Part | None]) -> None:
        """Give parts to processes while there are free ones, and memory."""
        while self._processes.is_free:
            self._next = self._next or next(queue, None)
            if self._next is None or not self._is_room_for(self._next):
                return
            part, self._next = self._next, None
            part.step.bytes += part.bytes
            self._begun[self._processes.begin(part.plan)] = part

    def _is_room_for(self, part: _Part) -> bool:
        if part.step.number <= self._handed:
            return True
        with self._changed:
            held = sum(step.bytes for step in self._steps if step.number > self._handed)
        return not held or held + part.bytes <= self._bounds.bytes

    def _put(self, part: _Part, batch: StepBatch) -> None:
        if part.step.put(part, batch):
            with self._changed:
                part.step.batch = part.step.joined()
                self._changed.notify_all()


@dataclass(eq=False)
class _Part:
    step: _Step
    pack: int
    """Its number in the step."""
    place: int
    """Its number among the parts of the step."""
    plan: StepPlan
    bytes: int
    read: StepBatch | None = None


class _Step:
    """A rank's share of a step, as it comes together."""

    def __init__(self, number: int, share: StepPlan, part: int, reader: PackReader, pin: bool) -> None:
        size = reader.form.image_size
        self.number, self.plan, self.bytes = number, share, 0
        found = [*parts(share, part, size)]
        self.parts = [_Part(self, pack, i, plan, plan_bytes(plan, size)) for i, (pack, plan) in enumerate(found)]
        self._packs = [_Joining([p for p in self.parts if p.pack == n], pin) for n in range(found[-1][0] + 1)]
        self._missing = len(self.parts)
        self.batch: StepBatch | None = None

    def put(self, part: _Part, batch: StepBatch) -> bool:
        """One of its parts has come; whether it was the last."""
        part.read = batch
        self._packs[part.pack].go_on()
        self._missing -= 1
        return not self._missing

    def joined(self) -> StepBatch:
        whole = StepBatch.join([part.read for part in self.parts if part.read])
        packs = [pack.whole for pack in self._packs if pack.whole]
        if whole.away:  # of a step that is not taken nothing counts
            return StepBatch(whole.step, packs, away=whole.away)
        return replace(whole, packs=packs)


@dataclass
class _Joining:
    """A pack that comes in parts. Each leaves the memory of the process that read it when its turn is there."""

    parts: list[_Part]
    pin: bool
    whole: Pack | None = None
    _laid: list[Pack] = field(default_factory=list)
    _room: Room | None = None

    def go_on(self) -> None:
        """Take what has come and is next."""
        while len(self._laid) < len(self.parts) and (batch := self.parts[len(self._laid)].read):
            (pack,), batch.packs = batch.packs, []
            self._laid.append(self._own(pack) if len(self.parts) > 1 else pack)
        if len(self._laid) == len(self.parts):
            self.whole = self._joined()
            self._laid, self._room = [], None

    def _own(self, pack: Pack) -> Pack:
        """The pack in memory of this process, its frames behind those of the one before."""
        if self._room is None:
            size = sum(part.bytes for part in self.parts)
            self._room = Room(torch.empty(size, dtype=torch.uint8, pin_memory=self.pin))
        frames = torch.from_numpy(self._room.empty(pack.frames.shape)).copy_(pack.frames)
        rest = {name: tensor.clone() for name, tensor in pack.tensors().items() if name != "frames"}
        return Pack.of(rest | {"frames": frames}, pack.rest())

    def _joined(self) -> Pack:
        found = [pack for pack in self._laid if pack.keys] or self._laid[:1]  # without blanks
        pack = Pack.join(found, self._room.cat) if self._room and len(found) > 1 else found[0]
        return pack.pin_memory() if self.pin else pack

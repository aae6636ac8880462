"""Lightning's sharded strategy with checkpoints that are written by a thread while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from timeviper.training.store import CheckpointStore, step_of

META = "meta.pt"  # Lightning's name for all that is not a shard; its `load_checkpoint` looks for it


class Sharded(ModelParallelStrategy):
    """FSDP2 for any number of ranks; `save_checkpoint` returns when the state has been copied.

    At most one copy exists: `finish_write` comes before the next `save_checkpoint`, and before the process ends.
    The files are those of `ModelParallelStrategy`, so its `load_checkpoint` reads them on any number of ranks.
    """

    def __init__(self, store: CheckpointStore, **options: Any) -> None:
        super().__init__(**options)
        self.store = store
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._step = 0

    def model_to_device(self) -> None:
        """Leaves the model where `configure_model` has put it: with offloading, on the host."""
        module = self.lightning_module
        assert module is not None
        model = module._modules.pop("model")
        module.to(self.root_device)
        module._modules["model"] = model

    def setup_environment(self) -> None:
        super().setup_environment()
        # The writer's collectives run beside those of training and must not mix with them.
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Begin to write what `trainer.save_checkpoint` collected to `filepath`, a path of the store."""
        assert self._thread is None, "the previous write has not been finished"
        self._step = step_of(Path(filepath))
        state = {"state_dict": checkpoint.pop("state_dict")}
        state |= {f"optimizer_{i}": s for i, s in enumerate(checkpoint.pop("optimizer_states", []))}
        state = self._own_copy(state)
        self._error = None
        beside = self.store.beside(self._step) if self.global_rank == 0 else {}
        work = (state, checkpoint, beside)
        self._thread = threading.Thread(target=self._write, args=work, name="checkpoint", daemon=True)
        self._thread.start()

    def _own_copy(self, state: dict[str, Any]) -> dict[str, Any]:
        """Copy the tensors that training goes on changing; what came from a GPU is a copy already."""
        assert self.model is not None
        live = {_address(t) for t in [*self.model.parameters(), *self.model.buffers()]}
        live |= {_address(t) for optimizer in self.optimizers for t in _state_tensors(optimizer)}
        return tree_map_only(Tensor, lambda t: t.detach().clone() if _address(t) in live else t, state)

    def _write(self, state: dict[str, Any], rest: dict[str, Any], beside: Mapping[str, str]) -> None:
        """All ranks together, each in its thread. When `save` returns on rank 0, every rank has written its files."""
        partial = self.store.partial(self._step)
        try:
            self._begin()
            dcp.save(state, checkpoint_id=partial, process_group=self._group)
            if self.global_rank == 0:
                torch.save(rest, partial / META)
                self.store.commit(self._step, self.world_size, beside)
        except (Exception, CheckpointException) as error:  # the latter is no Exception
            self._error = error

    def _begin(self) -> None:
        """Rank 0 makes the folder; the others wait for it, and hear of it when it cannot."""
        failed: list[str | None] = [None]
        if self.global_rank == 0:
            try:
                self.store.begin(self._step)
            except OSError as error:
                failed = [str(error)]
        dist.broadcast_object_list(failed, src=0, group=self._group)
        if failed[0] is not None:
            raise OSError(failed[0])

    @property
    def write_failed(self) -> bool:
        """Whether this rank knows already that the write under way will not succeed."""
        return self._error is not None

    def finish_write(self) -> str | None:
        """Wait for the write under way; every rank must call this at the same step.

        Returns why it failed, the same words on all ranks, or None.
        """
        if self._thread is None:
            return None
        self._thread.join()
        self._thread = None
        reason = _root(self._error) if self._error is not None else None
        self._error = None
        if self.world_size > 1:
            reasons: list[str | None] = [None] * self.world_size
            dist.all_gather_object(reasons, reason, group=self._group)
            reason = next((r for r in reasons if r is not None), None)
        if reason is not None and self.global_rank == 0:
            self.store.discard(self._step)
        return reason

    def abandon_write(self, seconds: float) -> None:
        """Give the write under way some time to end; for a process that is about to end, alone or not."""
        if self._thread is not None:
            self._thread.join(seconds)
            self._thread = None


def _address(tensor: Tensor) -> int:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.untyped_storage().data_ptr()


def _state_tensors(optimizer: Optimizer) -> Iterator[Tensor]:
    return (v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))


def _root(error: BaseException) -> str:
    """The innermost cause, in words: distributed saving wraps the operating system's error."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    if "unexpected pos" in str(error):  # all that torch's writer says when the system takes no more bytes
        return "a file could not be written whole"
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

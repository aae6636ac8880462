"""Counts what makes the host wait for the device, in code that runs on the meta device as if it were one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The host asks for a value, or for a size that depends on values; so does an index of booleans.
ASK = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "bincount", "equal"}


class Waits(TorchDispatchMode):
    """`found`: a line for each wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        away = any(t.is_meta for t in tensors)
        here = [t for t in tensors if not t.is_meta]
        if name in ("_to_copy", "copy_"):
            target = kwargs.get("device") or (args[0].device if name == "copy_" else None)
            crosses = here and (away or (target is not None and torch.device(target).type != "cpu"))
            blocking = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            if (crosses and blocking) or (away and target is not None and torch.device(target).type == "cpu"):
                self.found.append(f"{name} between devices")
        elif away and (name in ASK or (name == "index" and any(t.dtype == torch.bool for t in tensors[1:]))):
            self.found.append(name)
        elif away and any(t.ndim for t in here):  # a number without dimensions goes along with a kernel's arguments
            self.found.append(f"{name} of tensors on both devices")
        return func(*args, **kwargs)


@contextmanager
def counted_waits() -> Iterator[list[str]]:
    """Also tensors that are made of the host's numbers on the device: a copy of a list that is not pinned."""
    make: dict[str, Callable[..., Tensor]] = {name: getattr(torch, name) for name in ("tensor", "as_tensor")}
    mode = Waits()

    def watched(name: str) -> Callable[..., Tensor]:
        def call(data: Any, *args: Any, **kwargs: Any) -> Tensor:
            device = kwargs.get("device")
            if device is not None and torch.device(device).type != "cpu":
                mode.found.append(f"torch.{name} on the device")
            return make[name](data, *args, **kwargs)

        return call

    with patch.object(torch, "tensor", watched("tensor")), patch.object(torch, "as_tensor", watched("as_tensor")), mode:
        yield mode.found
